"""GLUE tasks (Wang et al. 2018): the official folders of .tsv files, or the Hub's copy."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.processes import say
from hf_tiny_transformer.common.tables import parse_number, read_lines

from . import HELD_OUT_SEED, Example, HoldOut, Splits, from_hub, hold_out

HUB_PATH = "nyu-mll/glue"
HELD_OUT_SENTENCES = 0.1  # share of SST-2's sentences
Rows = list[tuple[str, Example]]  # with the index of each


@dataclass(frozen=True)
class Part:
    """One official split: its name (of a test split, in a submission), its file, and where it is on the Hub."""

    name: str
    file: str
    hub_split: str
    hub_config: str | None = None  # if it is not the task's


@dataclass(frozen=True)
class GlueSource:
    """Where a GLUE task is, on the Hub and in the official folders.

    GLUE does not publish its test labels. The official dev set is reported, and the validation split is a seeded part
    of the training set.
    """

    hub_config: str
    folder: str
    file_columns: tuple[str, ...]  # the text columns in the files; on the Hub they are named like the task's
    file_labels: tuple[str, ...] = ()  # as spelled in the files, in the order of the label names; () for numbers
    label_column: str = "label"
    header: tuple[str, ...] = ()  # the columns of train and dev files that have no header
    dev: tuple[Part, ...] = (Part("dev", "dev.tsv", "validation"),)
    test: tuple[Part, ...] = ()
    drops_broken_rows: bool = False  # which some official files contain: they are skipped and counted
    hold_out: HoldOut = hold_out

    @property
    def test_parts(self) -> tuple[Part, ...]:
        """Return the official test sets."""
        return self.test or (Part(self.folder, "test.tsv", "test"),)


def load_glue(source: GlueSource, text_columns: Sequence[str], data: str | None) -> Splits:
    """Read a task's labelled splits from a folder in GLUE's layout or the task's own, or from the Hub (None)."""
    parts = (Part("train", "train.tsv", "train"), *source.dev)
    found = {part.name: [row for _, row in _read(source, part, text_columns, data, True)] for part in parts}
    return Splits(*source.hold_out(found.pop("train")), found)


def load_test(source: GlueSource, text_columns: Sequence[str], data: str | None) -> dict[str, Rows]:
    """Return the (index, unlabelled example) pairs of each test split that exists, by its name in a submission."""
    exists = {part: data is None or (_task_folder(data, source) / part.file).is_file() for part in source.test_parts}
    return {part.name: _read(source, part, text_columns, data, False) for part in source.test_parts if exists[part]}


def is_present(source: GlueSource, data: str | None) -> bool:
    """Return whether a folder holds the task; the Hub holds all."""
    return data is None or (Path(data) / source.folder).is_dir()


def hold_out_sentences(train: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Split SST-2's phrases so that no part of a validation sentence is trained on.

    Stanford's treebank (Socher et al. 2013) labels every phrase of a sentence's parse tree. GLUE's SST-2 trains on all
    of them, while its dev and test sets are whole sentences. Phrases drawn at random would be too easy: their
    sentences are trained on. Here a seeded tenth of the sentences is the validation split, and phrases that occur in
    no other sentence are removed from training. A sentence is a row that is part of no other row.
    """
    owners = _owners([example.texts[0] for example in train])
    sentences = sorted({owner for of_row in owners for owner in of_row})
    random.Random(HELD_OUT_SEED).shuffle(sentences)
    held_out = set(sentences[: max(1, round(HELD_OUT_SENTENCES * len(sentences)))])
    return (
        [example for example, of_row in zip(train, owners, strict=True) if not held_out.issuperset(of_row)],
        [train[row] for row in sorted(held_out)],
    )


def _owners(texts: Sequence[str]) -> list[list[int]]:
    """Return for each row the sentences that contain it, by their rows; a sentence contains itself."""
    rows = defaultdict(list)
    for row, text in enumerate(texts):
        rows[" ".join(text.split())].append(row)
    owners: list[list[int]] = [[] for _ in texts]
    for text in sorted(rows, key=lambda text: -len(text.split())):  # longest first: a part comes after its sentence
        sentence = rows[text][0]
        if not owners[sentence]:
            words = text.split()
            spans = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
            for row in (row for part in spans & rows.keys() for row in rows[part]):
                owners[row].append(sentence)
    return owners


def _read(source: GlueSource, part: Part, text_columns: Sequence[str], data: str | None, labelled: bool) -> Rows:
    """Return the index and the example of each row of a split."""
    if data is None:
        advice = f"check the network, or give --data a folder that holds {source.folder}/train.tsv and its dev set"
        config = part.hub_config or source.hub_config
        rows = from_hub(datasets.load_dataset, HUB_PATH, config, split=part.hub_split, advice=advice)
        texts = [tuple(row[column].strip() for column in text_columns) for row in rows]
        labels = [row["label"] if labelled else None for row in rows]
        examples = map(Example, texts, labels)
        return [(str(row.get("idx")), example) for row, example in zip(rows, examples, strict=True)]
    path = _task_folder(data, source) / part.file
    if not labelled:  # the first column is the index, whatever its name
        return [(first, Example(tuple(texts), None)) for _, first, texts in _rows(path, source.file_columns, None)]
    rows = _rows(path, (*source.file_columns, source.label_column), source)
    return [(first, Example(tuple(texts), _label(where, label, source))) for where, first, (*texts, label) in rows]


def _task_folder(data: str, source: GlueSource) -> Path:
    if not Path(data).is_dir():
        raise UserError(f"--data {data}: no such folder; name the one that holds {source.folder}/train.tsv")
    return Path(data) / source.folder if is_present(source, data) else Path(data)


def _rows(path: Path, columns: Sequence[str], source: GlueSource | None) -> Iterator[tuple[str, str, list[str]]]:
    """Iterate over rows, in which quotes are text: place for messages, first field, and the fields of `columns`."""
    lines = ((number, line.removesuffix("\r").split("\t")) for number, line in read_lines(path, newline="\n"))
    header = (source and source.header) or next(lines, (0, [""]))[1]  # test files have one
    if missing := [column for column in columns if column not in header]:
        raise UserError(f"{path}, line 1: no column {missing[0]!r}; expected {', '.join(columns)}")
    places, broken = [header.index(column) for column in columns], 0
    for number, fields in lines:
        where = f"{path}, line {number}"
        if len(fields) == len(header):
            yield where, fields[0], [fields[place].strip() for place in places]
        elif not (source and source.drops_broken_rows):
            raise UserError(f"{where}: {len(fields)} fields, but there are {len(header)} columns; correct the row")
        else:
            broken += 1
    if broken:
        say(f"{path}: skipped {broken} broken rows")


def _label(where: str, label: str, source: GlueSource) -> int | float:
    names = source.file_labels
    found = (names.index(label) if label in names else None) if names else parse_number(label)
    if found is None:
        raise UserError(f"{where}: {source.label_column} is {label!r}; expected {', '.join(names) or 'a number'}")
    return found
