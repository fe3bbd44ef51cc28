"""Small inputs for the tests of finetune/data, each with what it holds, and one check of how bad input ends."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune.settings import FinetuneSettings
from hf_tiny_transformer.common.errors import UserError

WORDS = [f"plain{i}" for i in range(24)]
ROWS = [(f"{('good', 'bad')[i % 2]}{i % 8} {WORDS[i % 24]} {WORDS[i % 7]}", i % 2) for i in range(120)]


def refuses(call: Callable[..., Any], *arguments: Any) -> str:
    """Return the one line with which bad input is refused."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_table(path: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = ("text", "label")) -> Path:
    """Write a .csv, .tsv or .jsonl file."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        if path.suffix == ".jsonl":
            stream.writelines(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
        else:
            csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",").writerows([header, *rows])
    return path


def settings(task: Path, **flags: Any) -> FinetuneSettings:
    """Return the settings of a run on an own file with the columns `text` and `label`."""
    columns = {"text": "text", "label": None if "target" in flags else "label"}
    return FinetuneSettings(model="unused", output="unused", task=str(task), **{**columns, **flags})


def write_files(folder: Path, files: dict[str, str | bytes]) -> str:
    """Write files and return their folder as a flag has it."""
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)
