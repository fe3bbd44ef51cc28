"""A user's own table: what kind of task its answers are, and splits without a text on two sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.processes import say
from hf_tiny_transformer.common.tables import FORMATS, Record, TableFile, file_format, parse_number

from ..kinds import Kind
from ..kinds.multiple_choice import MultipleChoice
from ..kinds.sequence import SEPARATOR, MultiLabel, Regression, SingleLabel
from ..kinds.text_to_text import METRICS, TextToText
from . import HELD_OUT_SEED, Example, Splits

if TYPE_CHECKING:
    from ..settings import FinetuneSettings

TABLES = tuple(suffix for suffix in FORMATS if suffix != ".txt")
SHARE = 0.1  # of the rows, for each split that is not given
MOST_WHOLE_NUMBERS = 20  # more distinct whole numbers are a scale, not classes


@dataclass(frozen=True)
class OwnFile:
    """A task made from a user's file, whose `name` has no folder; `text_columns` name an example's texts."""

    name: str
    about: str
    kind: Kind
    text_columns: tuple[str, ...]
    splits: Splits


@dataclass(frozen=True)
class _Answers:
    """What the answers of a file are: `finding` tells the user, `expected` is for error messages.

    `label` turns (cell, texts of the row) into a label, or into None if the cell is not a valid answer.
    """

    kind: Kind
    finding: str
    expected: str
    text_columns: tuple[str, ...]
    label: Callable[[Any, tuple[str, ...]], Any]


def is_own_file(task: str) -> bool:
    """Return whether `--task` names a file: its name has a table's or a text's suffix, compressed or not."""
    return any(suffix.lower() in FORMATS for suffix in Path(task).suffixes)


def read_own_file(settings: FinetuneSettings) -> OwnFile:
    """Read `settings.task` and the validation and test files, and print what they were taken for.

    Raises:
        UserError: A flag is missing, or a file is unreadable or wrong; the message has file, line and column.
    """
    answer = _check_flags(settings)
    texts = tuple(column for column in (settings.text, settings.pair) if column is not None)
    columns = (*texts, *(settings.choices or ()), answer)
    if len(set(columns)) < len(columns):
        flags = "--text, --pair, --choices and --label or --target"
        raise UserError(f"{flags} must name different columns; given are {', '.join(columns)}")
    main = _Table("--task", settings.task, columns)
    if settings.choices is not None:
        answers = _choice_answers(main, texts, settings.choices, answer)
    elif settings.target is not None:
        kind = TextToText(settings.metric or "rouge")
        finding = f"texts to write, scored by {kind.metric}"
        answers = _Answers(kind, finding, "expected a text", texts, _written)
    else:
        answers = _label_answers(main, texts, answer)
    say(f"{settings.task}: {len(main.records)} rows; column {answer!r} holds {answers.finding}")

    def examples(table: _Table) -> list[Example]:
        return [_example(table, record, texts, settings.choices or (), answer, answers) for record in table.records]

    whole = examples(main)
    files = {"validation": settings.validation, "test": settings.test}
    given = {name: examples(_Table(f"--{name}", file, columns)) for name, file in files.items() if file is not None}
    splits = _split(whole, given, shared=len(texts) if settings.choices is None else 1)
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in splits.named().items())
    made = [name for name in files if name not in given]
    how = f"; {' and '.join(made)} taken from {settings.task} by a hash of the text" if made else ""
    say(f"rows: {counts}{how}; reported: test")
    name = Path(settings.task).name
    return OwnFile(name, f"{name}, column {answer}", answers.kind, answers.text_columns, splits)


class _Table:
    """The rows of a file; a file, column or row that cannot be read is a `UserError`, as is a text that is none."""

    def __init__(self, flag: str, file: str, columns: Sequence[str]) -> None:
        file_format(Path(file), TABLES, flag)
        self.file = TableFile(Path(file), columns, flag)
        self.refuse = self.file.refuse
        self.records = list(self.file.checked())
        if not self.records:
            raise UserError(f"{file}: no rows; add labelled texts")

    def text(self, record: Record, column: str, value: Any) -> str:
        """Return a text without the spaces around it; refuse anything else."""
        if not isinstance(value, str) or not value.strip():
            found = "empty" if value is None or not str(value).strip() else f"{value!r} is not text"
            raise self.refuse(record, f"{found}; add a text or remove the row", column)
        return value.strip()

    def texts(self, record: Record, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the texts of some columns, as `text`."""
        return tuple(self.text(record, column, record.values[column]) for column in columns)

    def choices(self, record: Record, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the choices of a row: a text per column, or the texts of a single column's list."""
        if len(columns) != 1:
            return self.texts(record, columns)
        values = record.values[columns[0]]
        if not isinstance(values, list):
            problem = f"{str(values)[:50]!r} is not a list; --choices takes a column of lists, or several columns"
            raise self.refuse(record, problem, columns[0])
        if len(values) < 2:
            raise self.refuse(record, f"{len(values)} choices; expected two or more", columns[0])
        return tuple(self.text(record, columns[0], value) for value in values)


def _check_flags(settings: FinetuneSettings) -> str:
    """Return the column with the answers, after checking that the flags agree."""
    if settings.data is not None:
        raise UserError(f"--data {settings.data}: --task {settings.task} is the data; remove --data")
    if settings.label is not None and settings.target is not None:
        raise UserError("--label and --target: the answer is a label or a text; remove one of them")
    if settings.choices is not None and settings.target is not None:
        raise UserError("--choices and --target: the answer is chosen or written; remove one of them")
    for flag in ("text", "label" if settings.target is None else "target"):
        if getattr(settings, flag) is None:
            raise UserError(f"--{flag} is required; name the column of {settings.task} that holds it")
    if settings.target is None:
        if settings.metric is not None:
            raise UserError(f"--metric {settings.metric}: only with --target; labels have their own metrics")
        return settings.label
    if settings.pair is not None:
        raise UserError(f"--pair {settings.pair}: --target reads one text; remove --pair")
    if settings.metric not in (None, *METRICS):
        raise UserError(f"--metric {settings.metric}: must be {' or '.join(METRICS)}")
    return settings.target


def _example(
    table: _Table, record: Record, texts: Sequence[str], choices: Sequence[str], answer: str, answers: _Answers
) -> Example:
    words = table.texts(record, texts)
    if choices:
        words += table.choices(record, choices)
        if len(words) != len(answers.text_columns):
            found, expected = len(words) - len(texts), len(answers.text_columns) - len(texts)
            raise table.refuse(record, f"{found} choices, but {expected} in the first row", choices[0])
    label = answers.label(record.values[answer], words)
    if label is None:
        raise table.refuse(record, f"label {record.values[answer]!r}; {answers.expected}", answer)
    return Example(words, label)


def _written(value: Any, _: tuple[str, ...]) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


def _label_answers(table: _Table, texts: tuple[str, ...], column: str) -> _Answers:
    """Find out whether a column holds several labels per text, numbers on a scale, or one label per text."""
    values = [record.values[column] for record in table.records]
    several = any(isinstance(value, list) or SEPARATOR in str(value) for value in values)
    for record, value in zip(table.records, values, strict=True):
        for part in value if isinstance(value, list) else [value]:
            if part is None or isinstance(part, dict | list) or not (several or str(part).strip()):
                raise table.refuse(record, "no label; add one or remove the row", column)
            if _is_not_finite(part):
                raise table.refuse(record, f"{part!r} is not a label or number; correct or remove the row", column)
    if several:
        names = sorted({name for value in values for name in _parts(value)})
        what = "lists" if isinstance(values[0], list) else f"labels joined by {SEPARATOR}"
        return _classes(MultiLabel, names, f"{what}: classification with any number of labels", texts)
    numbers = {parse_number(value) for value in values}
    if None in numbers:
        names, what = sorted({str(value).strip() for value in values}), "different texts"
    elif len(numbers) > MOST_WHOLE_NUMBERS or not all(number.is_integer() for number in numbers):
        finding = f"numbers from {min(numbers):g} to {max(numbers):g}: regression"
        return _Answers(Regression(), finding, "expected a number", texts, lambda value, _: parse_number(value))
    else:
        names, what = [_name(number) for number in sorted(numbers)], "whole numbers"
    if len(names) > max(MOST_WHOLE_NUMBERS, len(values) // 2):
        raise UserError(
            f"{table.file.path}, column {column!r}: {len(names)} different texts in {len(values)} rows are not labels; "
            "name another column with --label"
        )
    return _classes(SingleLabel, names, f"{len(names)} {what}: classification", texts)


def _classes(
    kind: type[SingleLabel] | type[MultiLabel], names: list[str], finding: str, texts: tuple[str, ...]
) -> _Answers:
    places = {name: index for index, name in enumerate(names)}
    listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")

    def label(value: Any, _: tuple[str, ...]) -> int | tuple[int, ...] | None:
        if value is None:
            return None
        if kind is SingleLabel:
            return places.get(str(value).strip(), places.get(_name(value)))
        indices = {places.get(name) for name in _parts(value)}
        return None if None in indices else tuple(sorted(indices))

    return _Answers(kind(tuple(names)), f"{finding} ({listed})", f"expected {listed}", texts, label)


def _name(value: Any) -> str:
    """Return the name of a class: 1, 1.0 and "1.0" are the same one."""
    number = parse_number(value)
    return str(value).strip() if number is None or not number.is_integer() else str(int(number))


def _is_not_finite(value: Any) -> bool:
    """Return whether a value is NaN or infinite, as a number or spelled out."""
    try:
        return not isinstance(value, bool) and float(value) - float(value) != 0
    except (TypeError, ValueError, OverflowError):
        return False


def _parts(value: Any) -> list[str]:
    parts = value if isinstance(value, list) else str(value).split(SEPARATOR)
    return [name for part in parts if (name := str(part).strip())]


def _whole(value: Any, first: int) -> int:
    number = parse_number(value)
    return int(number) - first if number is not None and number.is_integer() else -1


def _only(text: str, among: Sequence[str]) -> int:
    return among.index(text) if text and among.count(text) == 1 else -1


# How a label may name the right choice; each returns its index, or one outside the row's choices.
_READINGS: dict[str, Callable[[Any, Sequence[str]], int]] = {
    "numbers from 0": lambda value, choices: _whole(value, first=0),
    "numbers from 1": lambda value, choices: _whole(value, first=1),
    "letters from A": lambda value, choices: _only(str(value).strip().upper(), ascii_uppercase),
    "the right choice's text": lambda value, choices: _only(str(value).strip(), choices),
}


def _choice_answers(table: _Table, texts: tuple[str, ...], columns: Sequence[str], answer: str) -> _Answers:
    """Find the reading of the labels that fits all rows.

    Raises:
        UserError: Several readings fit and differ, or the choices are not texts.
    """
    rows = [(record.values[answer], table.choices(record, columns)) for record in table.records]
    found = {name: [read(value, choices) for value, choices in rows] for name, read in _READINGS.items()}
    fits = {
        name: sum(0 <= index < len(choices) for index, (_, choices) in zip(indices, rows, strict=True))
        for name, indices in found.items()
    }
    best = [name for name, count in fits.items() if count == max(fits.values())]
    if fits[best[0]] == len(rows) and any(found[name] != found[best[0]] for name in best):
        raise UserError(
            f"{table.file.path}, column {answer!r}: may be {' or '.join(best)}, which differ; use letters from A"
        )
    name, count, shared = best[0], len(rows[0][1]), len(texts)

    def label(value: Any, words: tuple[str, ...]) -> int | None:
        index = _READINGS[name](value, words[shared:])
        return index if 0 <= index < count else None

    expected = {
        "numbers from 0": f"0 to {count - 1}",
        "numbers from 1": f"1 to {count}",
        "letters from A": f"A to {ascii_uppercase[min(count, 26) - 1]}",
    }.get(name, "the text of exactly one of the row's choices")
    names = tuple(columns) if len(columns) > 1 else tuple(f"{columns[0]}[{i}]" for i in range(count))
    finding = f"{name}: multiple choice among {count}"
    return _Answers(MultipleChoice(shared=shared), finding, f"expected {expected}", (*texts, *names), label)


def _split(whole: list[Example], given: dict[str, list[Example]], shared: int) -> Splits:
    """Split rows so that those with the same first `shared` texts (ignoring case and spaces) stay together.

    The split depends on the texts only, not on their order in the file.
    """
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(whole):
        groups.setdefault(_text_hash(example, shared), []).append(index)
    waiting = sorted(groups)
    parts, taken = dict(given), set()
    for name in ("test", "validation"):
        if name not in given:
            indices: list[int] = []
            while waiting and len(indices) < max(1, round(SHARE * len(whole))):
                indices += groups[waiting.pop(0)]
            parts[name] = [whole[index] for index in sorted(indices)]
            taken.update(indices)
    train = [example for index, example in enumerate(whole) if index not in taken]
    seen = {_text_hash(example, shared) for example in train}
    for name, examples in given.items():
        if repeated := sum(_text_hash(example, shared) in seen for example in examples):
            say(f"warning: {repeated} of {len(examples)} rows of the {name} file also occur in the training data")
    return Splits(train, parts["validation"], {"test": parts["test"]})


def _text_hash(example: Example, shared: int) -> str:
    words = ["".join(text.lower().split()) for text in example.texts[:shared]]
    return hashlib.sha256(json.dumps([HELD_OUT_SEED, *words]).encode()).hexdigest()
