"""Reading words and their tags: files in CoNLL's columns, or a data set of the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets

from hf_tiny_transformer.runs import UserError

from .examples import Example, Splits
from .kinds.tagging import OUTSIDE, Tagging
from .split_files import arrange, find_split_files, find_splits

HUB = "hub:"
DOCUMENT_START = "-DOCSTART-"
_TAG = re.compile(r"O|[BIES]-\S+")
Sentence = tuple[list[str], list[str]]  # words, tags


def load_tagged(data: str | None) -> tuple[Tagging, Splits]:
    """Args:
        data: a folder of files known by train, dev and test in their names (eng.train, eng.testa, eng.testb), or
            hub:NAME[:CONFIG] with the columns `tokens` and `ner_tags`.

    Raises:
        UserError: a file is missing or wrong, or the Hub can't be reached; the message names file and line.
    """
    if data is None:
        raise UserError(
            "--data is missing; give --task ner a folder with train, validation and test files, or hub:NAME[:CONFIG]"
        )
    if data.startswith(HUB):
        sentences = _from_hub(data)
    else:
        sentences = {split: read_conll(path) for split, path in find_split_files(Path(data)).items()}
    names = sorted({tag for rows in sentences.values() for _, tags in rows for tag in tags} - {OUTSIDE})
    examples = {name: [Example((" ".join(words),), tags) for words, tags in rows] for name, rows in sentences.items()}
    return Tagging((OUTSIDE, *names)), arrange(examples)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """IOB1 marks an entity's first word with B- only where an entity of the same type ends before it. What is IOB2
    already stays as it is."""
    converted, before = [], OUTSIDE
    for tag in tags:
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        converted.append(f"B-{tag[2:]}" if begins else tag)
        before = tag
    return converted


def read_conll(path: Path) -> list[Sentence]:
    """Sentences with an empty line between two; a word a line, its tag in the last column.

    Raises:
        UserError: the file can't be read, or a line has no tag, or one that is no IOB tag.
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []
    for number, line in _lines(path):
        fields = line.split()
        if not fields or fields[0] == DOCUMENT_START:
            if words:
                sentences.append((words, to_iob2(tags)))
            words, tags = [], []
            continue
        if len(fields) < 2:
            raise UserError(f"{path}, line {number}: one column, {fields[0]!r}; a line is a word, ..., and its tag")
        if not _TAG.fullmatch(fields[-1]):
            raise UserError(f"{path}, line {number}: the tag {fields[-1]!r} is not O, B-TYPE or I-TYPE; convert it")
        words.append(fields[0])
        tags.append(fields[-1])
    if words:
        sentences.append((words, to_iob2(tags)))
    return sentences


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    raise UserError(f"{path}, line {number}: not UTF-8; convert the file to UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); check its permissions") from None


def _from_hub(data: str) -> dict[str, list[Sentence]]:
    name, _, config = data.removeprefix(HUB).partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # the Hub's clients raise a dozen unrelated types for "can't be reached"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--data {data}: can't be read from the Hub ({reason}); check name and network") from None
    sentences = {}
    for split, own_name in find_splits(loaded, f"--data {data}").items():
        column, names = _columns(loaded[own_name], data)
        sentences[split] = [_hub_sentence(row, column, names, data) for row in loaded[own_name]]
    return sentences


def _columns(split: datasets.Dataset, data: str) -> tuple[str, list[str] | None]:
    """The tags' column and, where it holds numbers, their names."""
    column = next((name for name in ("ner_tags", "tags", "labels") if name in split.column_names), None)
    if column is None or "tokens" not in split.column_names:
        raise UserError(
            f"--data {data}: its columns are {', '.join(split.column_names)}; it needs tokens, and ner_tags or tags"
        )
    return column, getattr(split.features[column].feature, "names", None)


def _hub_sentence(row: dict[str, Any], column: str, names: list[str] | None, data: str) -> Sentence:
    tags = [names[tag] if names and tag >= 0 else str(tag) for tag in row[column]]
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise UserError(f"--data {data}, column {column}: the tag {tag!r} is not O, B-TYPE or I-TYPE; convert it")
    return ["_".join(word.split()) or "_" for word in row["tokens"]], to_iob2(tags)
