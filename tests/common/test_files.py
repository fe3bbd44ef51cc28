"""Protects writes that are complete or absent, the refusal to overwrite, and readable errors of JSON files."""

import json
import os
import stat

import pytest

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import (
    atomic_directory,
    atomic_write_json,
    atomic_write_text,
    cache_entry,
    read_json,
    require_free_output,
)


def test_a_directory_appears_complete_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "model"
    for content in ("first", "second"):  # the second replaces the first
        with atomic_directory(target) as staging:
            (staging / "file").write_text(content)
            assert not (target / "file").exists() or (target / "file").read_text() == "first"
        assert (target / "file").read_text() == content
    with pytest.raises(RuntimeError), atomic_directory(target) as staging:
        (staging / "file").write_text("third")
        raise RuntimeError
    assert (target / "file").read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["model"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "file").stat().st_mode) == 0o644


def test_a_file_keeps_its_old_content_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "a.json"
    atomic_write_json(path, {"name": "ü"})
    with pytest.raises(UnicodeEncodeError):
        atomic_write_text(path, "half \ud83d")
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "ü"} and path.read_text().endswith("}\n")
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        ('{"a": 1,\n}', r"line [12]: broken JSON"),
        ("[1]", "is not a JSON object"),
        ("[" * 100_000, "cannot be read"),
        ("é".encode("latin1"), "cannot be read"),
    ],
)
def test_json_that_cannot_be_read_is_one_line(content, problem, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=problem) as caught:
        read_json(path, "save it again")
    assert str(caught.value).endswith("save it again") and "\n" not in str(caught.value)


def test_existing_output_is_never_overwritten(tmp_path):
    (tmp_path / "empty").mkdir()
    for free in ("new", "empty", "deep/new"):
        assert require_free_output(tmp_path / free) == tmp_path / free
    (tmp_path / "empty" / "mine").touch()
    for path, problem in (
        ("empty", r"is not empty \(mine"),
        ("empty/mine", "is a file"),
        ("empty/mine/x", "is a file"),
    ):
        with pytest.raises(UserError, match=problem):
            require_free_output(tmp_path / path)


def test_a_cache_entry_depends_on_every_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TINY_TRANSFORMER_CACHE", str(tmp_path))
    entries = {cache_entry("kind", settings) for settings in ({"a": 1}, {"a": 2}, {"b": 1})}
    assert len(entries) == 3 and all(entry.parent == tmp_path / "kind" for entry in entries)
    assert cache_entry("kind", {"a": 1, "b": 2}) == cache_entry("kind", {"b": 2, "a": 1})
