"""A user's own table: what kind of task its answers are, and splits without a text on two sides."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from string import ascii_uppercase
from textwrap import shorten
from typing import Any

from hf_tiny_transformer.common.errors import UserError, plural
from hf_tiny_transformer.common.processes import say
from hf_tiny_transformer.common.tables import FORMATS, TableFile, file_format, parse_number

from ..kinds import Kind
from ..kinds.multiple_choice import MultipleChoice
from ..kinds.sequence import SEPARATOR, MultiLabel, Regression, SingleLabel
from ..kinds.text_to_text import TextToText
from ..settings import FinetuneSettings
from . import CHOICES, HELD_OUT_SEED, Example, Splits, texts_of

TABLES = tuple(suffix for suffix in FORMATS if suffix != ".txt")
SHARE = 0.1  # of the rows, for each split that is not given
TEXT_METRICS = ("rouge", "bleu")
NOT_FINITE = ("nan", "inf", "infinity")
MOST_WHOLE_NUMBERS = 20  # more distinct whole numbers are a scale, not classes
# An example with its label as it is in the file, and the function that returns the error for one of its columns.
_Row = tuple[Example, Callable[[str, str], UserError]]


@dataclass(frozen=True)
class _Answers:
    """What the answers of a file are; `label` turns (answer, choices) into a label, or None for an invalid answer."""

    kind: Kind
    finding: str  # tells the user
    expected: str  # for error messages
    label: Callable[[Any, tuple[str, ...]], Any]


def is_own_file(task: str) -> bool:
    """Return whether `--task` names a file: its name has a table's or a text's suffix, compressed or not."""
    return any(suffix.lower() in FORMATS for suffix in Path(task).suffixes)


def read_own_file(settings: FinetuneSettings) -> tuple[Kind, tuple[str, ...], Splits]:
    """Read `settings.task` and the validation and test files, and print what they were taken for.

    Returns:
        The kind of task, the names of the texts, and the splits.

    Raises:
        UserError: A flag is missing, or a file is unreadable or wrong; the message has file, line and column.
    """
    answer = _check_flags(settings)
    named = {"text": settings.text, "pair": settings.pair}
    columns = {name: [column] for name, column in named.items() if column is not None}
    texts, choices, path = [*chain(*columns.values())], settings.choices or [], Path(settings.task)
    columns |= {CHOICES: choices} if choices else {}
    files = {name: getattr(settings, name) for name in ("task", "validation", "test")}
    rows = {name: _read(f"--{name}", file, columns, answer) for name, file in files.items() if file is not None}
    main, width = rows["task"], len(rows["task"][0][0].texts)
    if choices:
        answers = _choice_answers(main, MultipleChoice(shared=len(texts)), answer)
    elif settings.target is not None:
        kind = TextToText(settings.metric or "rouge")
        finding = f"texts to write, scored by {kind.metric}"
        answers = _Answers(kind, finding, "a text", lambda text, _: (isinstance(text, str) and text.strip()) or None)
    else:
        answers = _label_answers(main, answer, settings.label_type)
        if settings.metric is not None:
            if not isinstance(answers.kind, SingleLabel):
                raise UserError(f"--metric {settings.metric}: column {answer!r} holds {answers.finding}; leave it out")
            answers = replace(answers, kind=answers.kind.selected_by(settings.metric))
    say(f"{path}: {plural(len(main), 'row')}; column {answer!r} holds {answers.finding}")
    given: dict[str, list[Example]] = {name: [] for name in rows}
    for name, of_file in rows.items():
        for example, refuse in of_file:
            among = example.texts[len(texts) :]
            if len(example.texts) != width:
                raise refuse(f"{len(among)} choices, but {width - len(texts)} in the first row", choices[0])
            label = answers.label(example.label, among)
            if label is None:
                raise refuse(f"label {example.label!r}; expected {answers.expected}", answer)
            given[name].append(Example(example.texts, label))
    whole = given.pop("task")
    splits = _split(whole, given, shared=1 if choices else len(texts))
    counts = ", ".join(f"{name} {len(rows)}" for name, rows in splits.named().items())
    made = " and ".join(name for name in ("validation", "test") if name not in given)
    say(f"rows: {counts}{f'; {made} taken from {path} by a hash of the text' if made else ''}; reported: test")
    if len(choices) == 1:
        choices = [f"{choices[0]}[{i}]" for i in range(width - len(texts))]
    return answers.kind, (*texts, *choices), splits


def _check_flags(settings: FinetuneSettings) -> str:
    """Return the column with the answers, after checking that the flags agree."""
    answer = "label" if settings.target is None else "target"
    for flag in ("data",) if answer == "label" else ("data", "label", "label_type", "pair", "choices"):
        if getattr(settings, flag) is not None:
            raise UserError(f"--{flag}: does not apply to a table with --{answer}; leave it out")
    if settings.metric is not None and (settings.metric in TEXT_METRICS) != (answer == "target"):
        raise UserError(f"--metric {settings.metric}: does not score a --{answer}; leave it out")
    if settings.choices and (settings.label_type or settings.metric):
        raise UserError("--label_type and --metric: do not apply to multiple choice; leave them out")
    for flag in ("text", answer):
        if getattr(settings, flag) is None:
            raise UserError(f"--{flag} is required; name the column of {settings.task} that holds it")
    return getattr(settings, answer)


def _read(flag: str, file: str, columns: Mapping[str, Sequence[str]], answer: str) -> list[_Row]:
    """Read the texts and the answer of each row of a file."""
    names = [*chain(*columns.values()), answer]
    if len(set(names)) < len(names):
        raise UserError(f"{flag} {file}: flags must name different columns; given are {', '.join(names)}")
    file_format(Path(file), TABLES, flag)
    table, rows = TableFile(Path(file), names, flag), list[_Row]()
    for record in table.checked():
        try:
            texts = texts_of(record.values, columns)
        except ValueError as error:
            problem, column = error.args
            raise table.refuse(record, f"{problem}; correct or remove the row", column) from None
        words = chain(*(value if name == CHOICES else [value] for name, value in texts.items()))
        example = Example(tuple(word.strip() for word in words), record.values[answer])
        rows.append((example, partial(table.refuse, record)))
    if not rows:
        raise UserError(f"{file}: no rows; add labelled texts")
    return rows


def _label_answers(rows: list[_Row], column: str, label_type: str | None) -> _Answers:
    """Find out whether a column holds several labels per text, numbers on a scale, or one label per text.

    `label_type` (classification, regression or multi-label) is what the user states that it holds.
    """
    values = [example.label for example, _ in rows]
    several = label_type == "multi-label"
    if label_type is None:
        several = any(isinstance(value, list) or SEPARATOR in str(value) for value in values)
    for example, refuse in rows:
        for part in example.label if isinstance(example.label, list) else [example.label]:
            text = str(part).strip().lower().lstrip("+-")
            if part is None or isinstance(part, dict | list) or text in NOT_FINITE or not (text or several):
                raise refuse(f"{part!r} is not a label or number; correct or remove the row", column)
    if several:
        what = "lists" if isinstance(values[0], list) else f"labels joined by {SEPARATOR}"
        names = sorted({name for value in values for name in _parts(value)})
        return _classes(MultiLabel, names, f"{what}: classification with any number of labels", _parts)
    parsed = {parse_number(value) for value in values}
    numbers = [number for number in parsed if number is not None]
    is_scale = None not in parsed
    if is_scale and label_type is None:
        is_scale = len(numbers) > MOST_WHOLE_NUMBERS or not all(number.is_integer() for number in numbers)
    if label_type == "regression":
        for example, refuse in rows:
            if parse_number(example.label) is None:
                raise refuse(f"{example.label!r} is not a number, which --label_type regression needs", column)
    if None in parsed or (label_type == "classification" and not all(number.is_integer() for number in numbers)):
        what, read = "different texts", lambda value: [str(value).strip()]
    elif is_scale and label_type != "classification":
        finding = f"numbers from {min(numbers):g} to {max(numbers):g}: regression"
        return _Answers(Regression(), finding, "a number", lambda value, _: parse_number(value))
    else:
        what, read = "whole numbers", lambda value: [_name(value)]
    names = sorted({read(value)[0] for value in values}, key=int if what == "whole numbers" else None)
    if label_type is None and len(names) > max(MOST_WHOLE_NUMBERS, len(values) // 2):
        problem = f"one of {len(names)} {what} in {len(values)} rows, which are not labels; name another with --label"
        raise rows[0][1](problem, column)
    return _classes(SingleLabel, names, f"{len(names)} {what}: classification", read)


def _classes(
    kind: type[SingleLabel | MultiLabel], names: list[str], finding: str, read: Callable[[Any], list[str]]
) -> _Answers:
    """Return the answers of a column whose cells hold the names that `read` finds."""
    places = {name: index for index, name in enumerate(names)}
    listed = shorten(", ".join(names), 100)

    def label(value: Any, _: tuple[str, ...]) -> int | tuple[int, ...] | None:
        found = None if value is None else set(read(value))
        if found is None or not found <= places.keys():
            return None
        indices = sorted(places[name] for name in found)
        return tuple(indices) if kind is MultiLabel else indices[0]

    return _Answers(kind(tuple(names)), f"{finding} ({listed})", listed, label)


def _name(value: Any) -> str:
    """Return the name of a class: 1, 1.0 and "1.0" are the same one."""
    number = parse_number(value)
    return str(value).strip() if number is None or not number.is_integer() else str(int(number))


def _parts(value: Any) -> list[str]:
    parts = value if isinstance(value, list) else str(value).split(SEPARATOR)
    return [name for part in parts if (name := str(part).strip())]


def _only(value: Any, among: Sequence[str]) -> int | None:
    text = str(value).strip()
    return among.index(text) if text and among.count(text) == 1 else None


# How a label may name the right choice; each returns its index, or None.
_READINGS: dict[str, Callable[[Any, Sequence[str]], int | None]] = {
    "numbers from 0": lambda value, choices: _only(_name(value), [str(i) for i in range(len(choices))]),
    "numbers from 1": lambda value, choices: _only(_name(value), [str(i + 1) for i in range(len(choices))]),
    "letters from A": lambda value, choices: _only(str(value).upper(), ascii_uppercase[: len(choices)]),
    "the right choice's text": _only,
}


def _choice_answers(rows: list[_Row], kind: MultipleChoice, column: str) -> _Answers:
    """Find the reading of the labels that fits most rows; if several fit all, they must agree."""
    labelled = [(example.label, example.texts[kind.shared :]) for example, _ in rows]
    found = {name: [read(*row) for row in labelled] for name, read in _READINGS.items()}
    fewest = min(labels.count(None) for labels in found.values())
    best = [name for name, labels in found.items() if labels.count(None) == fewest]
    if fewest == 0 and any(found[name] != found[best[0]] for name in best):
        raise rows[0][1](f"may be {' or '.join(best)}, which differ; use letters from A", column)
    count = len(labelled[0][1])
    finding, expected = f"{best[0]}: multiple choice among {count}", f"{best[0]}, of {count} choices"
    return _Answers(kind, finding, expected, _READINGS[best[0]])


def _split(whole: list[Example], given: dict[str, list[Example]], shared: int) -> Splits:
    """Split rows by a hash of their first `shared` texts, so that equal texts (but for case and spaces) stay together.

    Of each class, the same share goes into each split: at least one text, if the class has three.
    """

    def text_hash(example: Example) -> str:
        words = ["".join(text.lower().split()) for text in example.texts[:shared]]
        return hashlib.sha256(json.dumps([HELD_OUT_SEED, *words]).encode()).hexdigest()

    hashes = [text_hash(example) for example in whole]
    sizes, split_of, class_of = Counter(hashes), dict[str, str](), dict[str, int]()
    for example, key in zip(whole, hashes, strict=True):
        label = example.label if isinstance(example.label, int) else -1  # only single labels are classes
        class_of[key] = min(label, class_of.get(key, label))
    classes: defaultdict[int, list[str]] = defaultdict(list)
    for key in sorted(class_of):
        classes[class_of[key]].append(key)
    for waiting in classes.values():
        rows, enough = sum(sizes[key] for key in waiting), len(waiting) >= 3
        for name in ("test", "validation"):
            wanted = 0 if name in given else max(int(enough), round(SHARE * rows))
            while len(waiting) > 1 and wanted > 0:
                split_of[waiting[0]] = name
                wanted -= sizes[waiting.pop(0)]
    parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for example, key in zip(whole, hashes, strict=True):
        parts[split_of.get(key, "train")].append(example)
    trained = set(class_of) - set(split_of)
    for name, examples in given.items():
        if repeated := sum(text_hash(example) in trained for example in examples):
            say(f"warning: {repeated} of {len(examples)} rows of the {name} file also occur in the training data")
    parts |= given
    return Splits(parts["train"], parts["validation"], {"test": parts["test"]})
