"""Write docs/tour.md, docs/tour.zh-CN.md and the pictures whose models exist: `python -m docs.tour`."""

from __future__ import annotations

import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from hf_tiny_transformer.common.arguments import CommandParser, build
from hf_tiny_transformer.common.environment import quieten_libraries
from hf_tiny_transformer.common.errors import run_command
from hf_tiny_transformer.common.files import atomic_write_text

from .numbers import all_numbers

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = {"tour.md": "lines", "tour.zh-CN.md": "行"}  # page -> the word before the numbers of source lines


@dataclass(frozen=True)
class TourSettings:
    """Models whose pictures are drawn if they exist.

    Args:
        model: Encoder, from `make pretrain`.
        seq2seq: Encoder-decoder, from `python -m pretrain --recipe seq2seq`.
        digits: Encoder on images, from `python -m benchmarks.digits`.
    """

    model: Path = Path("runs/sample/pretrained")
    seq2seq: Path = Path("runs/seq2seq")
    digits: Path = Path("runs/digits")


def source(name: str, word: str) -> str:
    """Return a link from docs/ to the lines of a class or function, "package.module:Name.method"."""
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    lines, first = inspect.getsourcelines(inspect.unwrap(found))
    file = Path(inspect.getsourcefile(inspect.unwrap(found))).relative_to(ROOT).as_posix()
    last = first + len(lines) - 1
    return f"[`{path}`, {file}, {word} {first}–{last}](../{file}#L{first}-L{last})"  # noqa: RUF001


def render(page: str) -> str:
    """Return the text of docs/PAGE for the current code."""
    template = (Path(__file__).parent / f"{page}.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals["source"] = lambda name: source(name, LANGUAGES[page])
    return environment.from_string(template).render(all_numbers())


def main() -> None:
    """Run the command."""
    parser = CommandParser("python -m docs.tour", __doc__)
    parser.add_settings(TourSettings)
    given = build(TourSettings, parser.parse(sys.argv[1:]))
    quieten_libraries()
    for page in LANGUAGES:
        atomic_write_text(ROOT / "docs" / page, render(page))
        print(f"docs/{page}")
    from .pictures import draw_all

    for line in draw_all(ROOT / "docs" / "tour", given.model, given.seq2seq, given.digits):
        print(line)


if __name__ == "__main__":
    sys.exit(run_command(main))
