"""Protects the tour and the Chinese README: every number, source line and picture in them matches the code."""

import re
from pathlib import Path

import pytest
from jinja2 import Environment, meta
from PIL import Image

from docs.tour import numbers, pictures
from docs.tour.__main__ import LANGUAGES, render

ROOT = Path(__file__).resolve().parents[2]
PAGES = list(LANGUAGES)
LARGEST_PICTURE = 100_000  # bytes
every_page = pytest.mark.parametrize("page", PAGES)


@every_page
def test_no_number_and_no_source_line_is_out_of_date(page: str):
    """The page in docs/ is what the template renders."""
    written = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    today = render(page).splitlines()
    stale = [f"{old!r} is now {new!r}" for old, new in zip(written, today, strict=False) if old != new]
    assert len(written) == len(today) and not stale, f"run `make tour`: {stale[:3]}"


def test_a_number_that_changes_shows(monkeypatch):
    """With another scale of the scores, the pages change."""
    before = render(PAGES[0])
    assert "0.88" in before and "112" in before and "96" in before
    honest = numbers.eager_attention_forward
    monkeypatch.setattr(numbers, "eager_attention_forward", lambda *given, scaling: honest(*given, scaling=scaling * 2))
    assert render(PAGES[0]) != before


@every_page
def test_the_linked_lines_are_the_named_thing(page: str):
    """The lines of each link contain the `def` or `class` of the name it shows."""
    links = re.findall(r"\[`([\w.]+)`, [^\]]*\]\(\.\./([^)#]+)#L(\d+)-L(\d+)\)", render(page))
    assert len(links) >= 14
    for name, file, first, last in links:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(first) - 1 : int(last)]
        assert re.search(rf"^\s*(def|class) {name.split('.')[-1]}\b", "\n".join(lines), re.M), (name, file)


@every_page
def test_the_pictures_are_there_and_small(page: str):
    named = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", render(page))
    assert len(named) == 10
    for name in named:
        path = ROOT / "docs" / name
        assert path.stat().st_size < LARGEST_PICTURE
        with Image.open(path) as image:
            assert image.format == "PNG" and image.width > 200


def test_both_languages_have_the_same_content():
    """The same numbers, formulas, pictures and source lines, in the same order."""
    templates = [(ROOT / "docs" / "tour" / f"{page}.j2").read_text(encoding="utf-8") for page in PAGES]
    for pattern in (r"\$\$.*?\$\$", r"\(tour/[\w-]+\.png\)", r'source\("[^"]+"\)', r"^## "):
        found = [re.findall(pattern, text, re.M) for text in templates]
        assert found[0] == found[1] and found[0], pattern
    variables = [meta.find_undeclared_variables(Environment().parse(text)) for text in templates]
    assert variables[0] == variables[1]
    assert variables[0] - {"source"} <= numbers.all_numbers().keys()


def test_pictures_of_the_code_need_no_model(tmp_path):
    """Pictures of missing models are unchanged, and a line names each missing model."""
    lines = list(pictures.draw_all(tmp_path, tmp_path / "a", tmp_path / "b", tmp_path / "c"))
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["computing", "encoder", "mask", "positions"]
    assert sum("no such model" in line for line in lines) == 3


def test_the_figures_and_commands_of_the_chinese_readme_are_in_the_english_one():
    """The English README may have more of them."""
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    for what in (r"^\|.*\d.*\|$", r"^(?:make|\.venv/bin/python) .*$"):
        lines = re.findall(what, chinese, re.M)
        pieces = {piece for line in lines for piece in re.findall(r"[\d][\d,.]*|--?[\w.-]+", line)}
        assert lines and {piece for piece in pieces if piece not in english} == set()
