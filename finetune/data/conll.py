"""Words and their tags: files in CoNLL's columns, or a data set of the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.tables import read_lines

from . import OUTSIDE, Example, Splits, arrange, find_split_files, find_splits, from_hub

HUB = "hub:"
DOCUMENT_START = "-DOCSTART-"
_TAG = re.compile(r"O|[BIES]-\S+")
_SPACE = " \t\r"  # what separates columns; a no-break space is part of a word
Sentence = tuple[list[str], list[str]]  # words, tags


def load_tagged(data: str | None) -> tuple[tuple[str, ...], Splits]:
    """Return the label names (`OUTSIDE` first) and the splits of sentences whose words have tags.

    An example's text is its words joined by spaces, and its label is the list of their tags in IOB2. `data` is a folder
    of files with train, dev and test in their names (eng.train, eng.testa, eng.testb), or hub:NAME[:CONFIG].

    Raises:
        UserError: A file is missing or wrong, no word has a tag other than O, or the Hub cannot be reached.
    """
    if data is None:
        raise UserError("--data is required; --task ner reads a folder with train and test files, or hub:NAME[:CONFIG]")
    if data.startswith(HUB):
        sentences = _from_hub(data)
    else:
        sentences = {split: read_conll(path) for split, path in find_split_files(Path(data)).items()}
    names = sorted({tag for rows in sentences.values() for _, tags in rows for tag in tags} - {OUTSIDE})
    if sentences["train"] and not any(tag != OUTSIDE for _, tags in sentences["train"] for tag in tags):
        raise UserError(f"--data {data}: all words of the train split have the tag O; add sentences with entities")
    examples = {name: [Example((" ".join(words),), tags) for words, tags in rows] for name, rows in sentences.items()}
    return (OUTSIDE, *names), arrange(examples)


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Convert IOB1, which marks an entity's first word with B- only after an entity of the same type; keep IOB2."""
    converted, before = [], OUTSIDE
    for tag in tags:
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        converted.append(f"B-{tag[2:]}" if begins else tag)
        before = tag
    return converted


def read_conll(path: Path) -> list[Sentence]:
    """Read sentences separated by empty lines; each line is a word, other columns, and its IOB tag."""
    sentences: list[Sentence] = [([], [])]
    for number, line in read_lines(path):
        fields = re.split(f"[{_SPACE}]+", line.strip(_SPACE))
        if fields[0] in ("", DOCUMENT_START):
            sentences.append(([], []))
            continue
        if len(fields) < 2:
            raise UserError(f"{path}, line {number}: one column, {fields[0]!r}; expected a word, ..., and its tag")
        _check_tags(fields[-1:], f"{path}, line {number}")
        sentences[-1][0].append(fields[0])
        sentences[-1][1].append(fields[-1])
    return [(words, to_iob2(tags)) for words, tags in sentences if words]


def _check_tags(tags: Iterable[str], where: str) -> None:
    for tag in tags:
        if not _TAG.fullmatch(tag):
            raise UserError(f"{where}: the tag {tag!r} is not O, B-TYPE or I-TYPE; convert it")


def _from_hub(data: str) -> dict[str, list[Sentence]]:
    name, _, config = data.removeprefix(HUB).partition(":")
    advice = f"check the name in --data {data}, and the network"
    loaded = from_hub(datasets.load_dataset, name, config or None, advice=advice)
    sentences: dict[str, list[Sentence]] = {}
    for split, own_name in find_splits(loaded, f"--data {data}").items():
        rows, sentences[split] = loaded[own_name], []
        column = next((name for name in ("ner_tags", "tags") if name in rows.column_names), None)
        if column is None or "tokens" not in rows.column_names:
            raise UserError(f"--data {data}: expected columns tokens, and ner_tags or tags, not {rows.column_names}")
        names = getattr(rows.features[column].feature, "names", None)  # where the tags are numbers
        for row in rows:
            tags = [names[value] if names and value >= 0 else str(value) for value in row[column]]
            _check_tags(tags, f"--data {data}")
            words = [re.sub(r"[ \t\r\n]+", "_", word.strip(" \t\r\n")) or "_" for word in row["tokens"]]
            sentences[split].append((words, to_iob2(tags)))
    return sentences
