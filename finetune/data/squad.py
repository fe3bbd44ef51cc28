"""Questions and their answers in SQuAD's JSON, version 1.1 or 2.0."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import read_json
from hf_tiny_transformer.common.tables import unicode_problem

from . import Example, Splits, arrange, find_split_files, hold_out


def load_squad(data: str | None) -> tuple[bool, Splits]:
    """Return whether the training file has questions without an answer (SQuAD 2), and the splits.

    An example's texts are question and context. Its label is the list of accepted answers, each [first character in
    the context, text]; it is empty where the context has no answer. `data` is a folder of .json files with train, dev
    and test in their names. Without a third file, whole documents of the training file are the validation split.

    Raises:
        UserError: A file is missing or wrong; the message names file and field.
    """
    if data is None:
        raise UserError("--data is required; --task qa reads a folder with SQuAD's train*.json and dev*.json")
    read = {split: _read(path) for split, path in find_split_files(Path(data), ".json").items()}
    examples = {split: rows for split, (rows, _) in read.items()}
    unanswerable = any(not example.label for example in examples["train"])
    return unanswerable, arrange(examples, partial(hold_out, groups=read["train"][1]))


def _read(path: Path) -> tuple[list[Example], list[int]]:
    """Read the questions of a file, and for each the number of its document."""
    examples, documents = [], []
    for where, document, context, question in each_question(path):
        text, accepted = _field(question, "question", str, where).strip(), []
        for answer in [] if question.get("is_impossible") else _field(question, "answers", list, where):
            words, start = _field(answer, "text", str, where), _field(answer, "answer_start", int, where)
            if start < 0 or context[start : start + len(words)] != words:
                raise UserError(f"{where}: the context does not have {words!r} at answer_start {start}; correct it")
            accepted.append([start, words])
        examples.append(Example((text, context), accepted))
        documents.append(document)
    return examples, documents


def each_question(path: Path) -> Iterator[tuple[str, int, str, Any]]:
    """Iterate over (place for error messages, number of the document, context, unchecked question) of a file."""
    content = read_json(path, "expected SQuAD's format")
    for d, document in enumerate(_field(content, "data", list, f"{path}")):
        for p, paragraph in enumerate(_field(document, "paragraphs", list, f"{path}, data[{d}]")):
            where = f"{path}, data[{d}].paragraphs[{p}]"
            context = _field(paragraph, "context", str, where)
            for q, question in enumerate(_field(paragraph, "qas", list, where)):
                yield f"{where}.qas[{q}]", d, context, question


def _field(value: Any, name: str, expected: type, where: str) -> Any:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, expected):
        raise UserError(f"{where}: no field {name!r} of type {expected.__name__}, which SQuAD's format requires")
    if isinstance(found, str) and (problem := unicode_problem(found)) is not None:
        raise UserError(f"{where}, {name}: {problem}")
    return found
