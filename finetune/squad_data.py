"""Reading questions and their answers in SQuAD's JSON, version 1.1 or 2.0."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hf_tiny_transformer.runs import UserError

from .examples import Example, Splits, hold_out
from .kinds.spans import Spans
from .split_files import arrange, find_split_files


def load_squad(data: str | None) -> tuple[Spans, Splits]:
    """Args:
        data: a folder of .json files known by train, dev and test in their names. What the choices are made by is
            taken from the training file by whole documents, where there is no third file.

    Raises:
        UserError: a file is missing or wrong; the message names file and field.
    """
    if data is None:
        raise UserError("--data is missing; give --task qa a folder with train*.json and dev*.json as SQuAD has them")
    read = {split: read_squad(path) for split, path in find_split_files(Path(data), ".json").items()}
    examples = {split: rows for split, (rows, _) in read.items()}
    unanswerable = any(not example.label for example in examples["train"])
    return Spans(unanswerable), arrange(examples, partial(hold_out, groups=read["train"][1]))


def read_squad(path: Path) -> tuple[list[Example], list[int]]:
    """Questions with their contexts, and the number of the document that each is about. A label is a list of accepted
    answers, each [first character in the context, text]; it is empty where the context does not say.

    Raises:
        UserError: the file can't be read, a field is missing, or an answer is not where it is said to be.
    """
    examples, documents = [], []
    for where, document, context, question in each_question(path):
        examples.append(_example(question, context, where))
        documents.append(document)
    return examples, documents


def each_question(path: Path) -> Iterator[tuple[str, int, str, Any]]:
    """(where it lies, number of its document, context, the question's object as it is). The file is read as a whole.

    Raises:
        UserError: the file can't be read, or what is around the questions is wrong.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); mend it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; convert the file to UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); check its permissions") from None
    for d, document in enumerate(_field(content, "data", list, f"{path}")):
        for p, paragraph in enumerate(_field(document, "paragraphs", list, f"{path}, data[{d}]")):
            where = f"{path}, data[{d}].paragraphs[{p}]"
            context = _field(paragraph, "context", str, where)
            for q, question in enumerate(_field(paragraph, "qas", list, where)):
                yield f"{where}.qas[{q}]", d, context, question


def _example(question: Any, context: str, where: str) -> Example:
    text = _field(question, "question", str, where).strip()
    accepted = []
    for answer in [] if question.get("is_impossible") else _field(question, "answers", list, where):
        words, start = _field(answer, "text", str, where), _field(answer, "answer_start", int, where)
        if start < 0 or context[start : start + len(words)] != words:
            raise UserError(f"{where}: the context has not {words!r} at answer_start {start}; mend it")
        accepted.append([start, words])
    return Example((text, context), accepted)


def _field(value: Any, name: str, expected: type, where: str) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get(name), expected):
        raise UserError(f"{where}: no field {name!r} of type {expected.__name__}; SQuAD's format has one")
    return value[name]
