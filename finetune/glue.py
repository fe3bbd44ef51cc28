"""Reading GLUE tasks: the official folders of .tsv files, or the Hub's copy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from hf_tiny_transformer.runs import UserError

from .examples import Example, Splits

HELD_OUT_SHARE = 0.05
HELD_OUT_MOST = 2000
HELD_OUT_SEED = 20202


@dataclass(frozen=True)
class GlueSource:
    """Where a GLUE task lies: on the Hub, and in the official folders. GLUE keeps its test labels to itself,
    so the reported split is the official dev set, and validation is a seeded part of the training set."""

    hub_path: str
    hub_config: str
    folder: str
    file_columns: tuple[str, ...]  # the text columns' names in train.tsv and dev.tsv
    file_labels: tuple[str, ...]  # as the files spell them, in the order of the task's label names


def load_glue(source: GlueSource, text_columns: Sequence[str], data: str | None) -> Splits:
    """Args:
        data: folder in GLUE's layout; None reads the Hub's copy.

    Raises:
        UserError: a folder, file, column or label is missing or wrong, or the Hub can't be reached.
    """
    if data is None:
        train, dev = _from_hub(source, text_columns)
    else:
        folder = _task_folder(Path(data), source.folder)
        train, dev = (_read_tsv(folder / f"{name}.tsv", source) for name in ("train", "dev"))
    order = list(range(len(train)))
    random.Random(HELD_OUT_SEED).shuffle(order)
    held_out = set(order[: min(HELD_OUT_MOST, max(1, round(HELD_OUT_SHARE * len(order))))])
    return Splits(
        train=[example for i, example in enumerate(train) if i not in held_out],
        validation=[example for i, example in enumerate(train) if i in held_out],
        reported=dev,
        reported_name="dev",
    )


def _from_hub(source: GlueSource, text_columns: Sequence[str]) -> tuple[list[Example], list[Example]]:
    try:
        loaded = datasets.load_dataset(source.hub_path, source.hub_config)
    except Exception as error:  # the Hub's clients raise a dozen unrelated types for "can't be reached"
        raise UserError(
            f"{source.hub_path} ({source.hub_config}) can't be read from the Hub ({_first_line(error)}); go online, "
            f"or give --data a folder that holds {source.folder}/train.tsv and {source.folder}/dev.tsv"
        ) from None
    return tuple(
        [Example(tuple(row[column].strip() for column in text_columns), row["label"]) for row in loaded[split]]
        for split in ("train", "validation")
    )


def _task_folder(data: Path, name: str) -> Path:
    if not data.is_dir():
        raise UserError(f"--data {data}: no such folder; name the one that holds {name}/train.tsv and {name}/dev.tsv")
    return data / name if (data / name).is_dir() else data


def _read_tsv(path: Path, source: GlueSource) -> list[Example]:
    """Rows of one file; GLUE's files have a header, tabs between fields and no quoting."""
    lines = _read_lines(path)
    header = lines[0].split("\t")
    wanted = [*source.file_columns, "label"]
    missing = [column for column in wanted if column not in header]
    if missing:
        raise UserError(f"{path}, line 1: no column {missing[0]!r}; the header must name {', '.join(wanted)}")
    positions = [header.index(column) for column in wanted]
    examples = []
    for number, line in enumerate(lines[1:], start=2):
        row = line.split("\t")
        if len(row) != len(header):
            raise UserError(f"{path}, line {number}: {len(row)} fields, but the header has {len(header)}; mend the row")
        *texts, label = (row[position].strip() for position in positions)
        if label not in source.file_labels:
            allowed = ", ".join(source.file_labels)
            raise UserError(f"{path}, line {number}: unknown label {label!r}; allowed are {allowed}")
        examples.append(Example(tuple(texts), source.file_labels.index(label)))
    if not examples:
        raise UserError(f"{path}: a header and no rows; give it labelled texts")
    return examples


def _read_lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --data needs GLUE's layout, with train.tsv and dev.tsv") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); check the path and its permissions") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {number}: not UTF-8; convert the file to UTF-8") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty; give it a header and labelled texts")
    # Not splitlines(): that would also split at U+2028 and the like, which texts may hold.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
