"""Reading GLUE tasks (Wang et al. 2018): the official folders of .tsv files, or the Hub's copy."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from hf_tiny_transformer.runs import UserError

from . import processes
from .examples import Example, HoldOut, Splits, hold_out

HUB_PATH = "nyu-mll/glue"


@dataclass(frozen=True)
class Part:
    """One split: its name here (for a test split: in a submission), its file, its name on the Hub."""

    name: str
    file: str
    hub_split: str
    hub_config: str | None = None  # where it is not the task's own


@dataclass(frozen=True)
class GlueSource:
    """Where a GLUE task lies: on the Hub, and in the official folders. GLUE keeps its test labels to itself,
    so what is reported is the official dev set, and validation is a seeded part of the training set."""

    hub_config: str
    folder: str
    file_columns: tuple[str, ...]  # the text columns' names in the files; on the Hub they are the task's
    file_labels: tuple[str, ...] = ()  # as the files spell them, in the order of the label names; () for numbers
    label_column: str = "label"
    header: tuple[str, ...] = ()  # the columns of train and dev files that come without a header
    dev: tuple[Part, ...] = (Part("dev", "dev.tsv", "validation"),)
    test: tuple[Part, ...] = ()
    drops_broken_rows: bool = False  # the official files hold some
    hold_out: HoldOut = hold_out  # of the training set

    @property
    def test_parts(self) -> tuple[Part, ...]:
        return self.test or (Part(self.folder, "test.tsv", "test"),)


def load_glue(source: GlueSource, text_columns: Sequence[str], data: str | None) -> Splits:
    """Args:
        data: folder in GLUE's layout, or the task's own folder in it; None reads the Hub's copy.

    Raises:
        UserError: a folder, file, column or label is missing or wrong, or the Hub can't be reached.
    """
    if data is None:
        whole = _from_hub(source, text_columns, "train")
        reported = {part.name: _from_hub(source, text_columns, part.hub_split) for part in source.dev}
    else:
        folder = _task_folder(Path(data), source)
        if not (folder / "train.tsv").exists() and (folder / "msr_paraphrase_train.txt").is_file():
            whole, reported = _original_mrpc(folder, source)
        else:
            whole = _read_examples(folder / "train.tsv", source)
            reported = {part.name: _read_examples(folder / part.file, source) for part in source.dev}
    train, validation = source.hold_out(whole)
    return Splits(train, validation, reported)


def load_test(
    source: GlueSource, text_columns: Sequence[str], data: str | None
) -> dict[str, list[tuple[str, Example]]]:
    """The (index, unlabelled example) pairs of each test split that is there, by its name in a submission.

    Raises:
        UserError: a file is broken, or the Hub can't be reached.
    """
    found = {}
    for part in source.test_parts:
        if data is None:
            rows = _load_hub(source, part.hub_split, part.hub_config)
            found[part.name] = [(str(row["idx"]), _hub_example(row, text_columns, None)) for row in rows]
            continue
        path = _task_folder(Path(data), source) / part.file
        if path.is_file():
            found[part.name] = _read_test(path, source)
    return found


def is_present(source: GlueSource, data: str | None) -> bool:
    """Whether the folder holds the task; on the Hub all are."""
    return data is None or (Path(data) / source.folder).is_dir()


def _load_hub(source: GlueSource, split: str, config: str | None = None) -> datasets.Dataset:
    try:
        return datasets.load_dataset(HUB_PATH, config or source.hub_config, split=split)
    except Exception as error:  # the Hub's clients raise a dozen unrelated types for "can't be reached"
        raise UserError(
            f"{HUB_PATH} ({source.hub_config}) can't be read from the Hub ({_first_line(error)}); go online, "
            f"or give --data a folder that holds {source.folder}/train.tsv and {source.folder}/{source.dev[0].file}"
        ) from None


def _from_hub(source: GlueSource, text_columns: Sequence[str], split: str) -> list[Example]:
    return [_hub_example(row, text_columns, row["label"]) for row in _load_hub(source, split)]


def _hub_example(row: dict, text_columns: Sequence[str], label: int | float | None) -> Example:
    return Example(tuple(row[column].strip() for column in text_columns), label)


def _task_folder(data: Path, source: GlueSource) -> Path:
    name = source.folder
    if not data.is_dir():
        raise UserError(
            f"--data {data}: no such folder; name the one that holds {name}/train.tsv and {name}/{source.dev[0].file}"
        )
    return data / name if (data / name).is_dir() else data


def _read_examples(path: Path, source: GlueSource) -> list[Example]:
    """Rows of one labelled file."""
    lines = _read_lines(path)
    header = list(source.header) or lines[0].split("\t")
    positions = _positions(path, header, [*source.file_columns, source.label_column])
    examples, broken = [], 0
    for number, line in enumerate(lines[0 if source.header else 1 :], start=1 if source.header else 2):
        row = line.split("\t")
        if len(row) != len(header):
            if source.drops_broken_rows:
                broken += 1
                continue
            expected = f"{source.folder} has {len(header)}" if source.header else f"the header has {len(header)}"
            raise UserError(f"{path}, line {number}: {len(row)} fields, but {expected}; mend the row")
        *texts, label = (row[position].strip() for position in positions)
        examples.append(Example(tuple(texts), _parse_label(label, source, f"{path}, line {number}")))
    if broken and processes.is_main():
        print(f"{path}: {broken} broken rows are left out", file=sys.stderr)
    if not examples:
        raise UserError(f"{path}: a header and no rows; give it labelled texts")
    return examples


def _parse_label(label: str, source: GlueSource, where: str) -> int | float:
    if source.file_labels:
        if label not in source.file_labels:
            raise UserError(f"{where}: unknown label {label!r}; allowed are {', '.join(source.file_labels)}")
        return source.file_labels.index(label)
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: the {source.label_column} {label!r} is no number; mend it")
    return value


def _positions(path: Path, header: list[str], wanted: Sequence[str]) -> list[int]:
    missing = [column for column in wanted if column not in header]
    if missing:
        raise UserError(f"{path}, line 1: no column {missing[0]!r}; the header must name {', '.join(wanted)}")
    return [header.index(column) for column in wanted]


def _read_test(path: Path, source: GlueSource) -> list[tuple[str, Example]]:
    """Rows of one file without labels. The first column is the row's index, whatever it is called."""
    lines = _read_lines(path)
    header = lines[0].split("\t")
    positions = _positions(path, header, source.file_columns)
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        row = line.split("\t")
        if len(row) != len(header):
            raise UserError(f"{path}, line {number}: {len(row)} fields, but the header has {len(header)}; mend the row")
        rows.append((row[0], Example(tuple(row[position].strip() for position in positions), None)))
    return rows


def _original_mrpc(folder: Path, source: GlueSource) -> tuple[list[Example], dict[str, list[Example]]]:
    """MRPC as Microsoft ships it: GLUE's dev set is the pairs of its training file that dev_ids.tsv names."""
    path, ids = folder / "msr_paraphrase_train.txt", folder / "dev_ids.tsv"
    examples = _read_examples(path, source)
    lines = _read_lines(path)
    positions = _positions(path, lines[0].split("\t"), ["#1 ID", "#2 ID"])
    pairs = [tuple(line.split("\t")[position] for position in positions) for line in lines[1:]]
    chosen = {tuple(line.split("\t")) for line in _read_lines(ids)}
    dev = [example for pair, example in zip(pairs, examples, strict=True) if pair in chosen]
    if not dev:
        raise UserError(f"{ids}: names no pair of {path.name}; take GLUE's own file")
    train = [example for pair, example in zip(pairs, examples, strict=True) if pair not in chosen]
    return train, {source.dev[0].name: dev}


def _read_lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --data needs GLUE's layout, with train.tsv, dev.tsv, ...") from None
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
