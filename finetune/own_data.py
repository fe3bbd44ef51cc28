"""Files of the user's own: read, told what kind of task they hold, and split so that no text is on two sides."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_tiny_transformer.runs import UserError

from . import processes
from .choice_data import find_choices
from .examples import HELD_OUT_SEED, Example, Splits
from .kinds.base import Kind
from .kinds.sequence import SEPARATOR, MultiLabel, Regression, SingleLabel
from .kinds.text_to_text import METRICS, TextToText
from .settings import FinetuneSettings
from .tables import SUFFIXES, Table, parse_number, read_table

SHARE = 0.1  # of the rows, for each split that is not given
MOST_WHOLE_NUMBERS = 20  # more different ones than this are a scale, not classes


@dataclass(frozen=True)
class OwnData:
    """`name` is the file's, without its folder."""

    name: str
    about: str
    kind: Kind
    text_columns: tuple[str, ...]
    splits: Splits


def is_own_file(task: str) -> bool:
    return Path(task).suffix.lower() in SUFFIXES


def read_own_data(settings: FinetuneSettings) -> OwnData:
    """Reads `settings.task` and the files beside it, and says on stderr what they were taken for.

    Raises:
        UserError: a flag is missing, or a file is unreadable or wrong; the message names file, line and column.
    """
    answer = _check_flags(settings)
    if settings.data is not None:
        raise UserError(f"--data {settings.data}: --task {settings.task} is the data itself; leave out --data")
    texts = tuple(column for column in (settings.text, settings.pair) if column is not None)
    columns = (*texts, *(settings.choices or ()), answer)
    if len(set(columns)) < len(columns):
        raise UserError(
            "--text, --pair, --choices and --label or --target must name different columns; given are "
            + ", ".join(columns)
        )
    main = read_table(Path(settings.task), columns)
    kind, finding, text_columns, examples_of = _understand(main, settings, texts, answer)
    _say(f"{settings.task}: {len(main.columns[answer])} rows; column {answer!r} holds {finding}")
    whole = examples_of(main)
    given = {
        name: examples_of(read_table(Path(file), columns))
        for name in ("validation", "test")
        if (file := getattr(settings, name)) is not None
    }
    splits = _split(whole, given, len(text_columns) if settings.choices is None else 1)
    counts = ", ".join(f"{name} {len(examples)}" for name, examples in splits.named().items())
    made = [name for name in ("validation", "test") if name not in given]
    how = f"; {' and '.join(made)} taken from {settings.task} by a hash of the text" if made else ""
    _say(f"rows: {counts}{how}; reported: test")
    name = Path(settings.task).name
    return OwnData(name, f"{name}, column {answer}", kind, text_columns, splits)


def _check_flags(settings: FinetuneSettings) -> str:
    """The column that holds the answers."""
    if settings.label is not None and settings.target is not None:
        raise UserError("--label and --target: a text gets a label or a text; leave out one of them")
    if settings.choices is not None and settings.target is not None:
        raise UserError("--choices and --target: a text is chosen or written; leave out one of them")
    for flag in ("text", "label" if settings.target is None else "target"):
        if getattr(settings, flag) is None:
            raise UserError(f"--{flag} is missing; name the column of {settings.task} that holds it")
    if settings.target is None:
        if settings.metric is not None:
            raise UserError(f"--metric {settings.metric}: is for --target; a label's kind has its own metrics")
        return settings.label
    if settings.pair is not None:
        raise UserError(f"--pair {settings.pair}: with --target one text is read; leave it out")
    if settings.metric not in (None, *METRICS):
        raise UserError(f"--metric {settings.metric}: must be {' or '.join(METRICS)}")
    return settings.target


def _understand(
    table: Table, settings: FinetuneSettings, texts: tuple[str, ...], answer: str
) -> tuple[Kind, str, tuple[str, ...], Callable[[Table], list[Example]]]:
    """The kind of task, what to say of the answers, a name for each text of an example, and how to read a table like
    this one."""
    if settings.choices is not None:
        found = find_choices(table, texts, settings.choices, answer)
        return found.kind, found.finding, found.text_columns, found.examples
    if settings.target is None:
        kind, finding = _kind_of(table, answer)
    else:
        kind = TextToText(settings.metric or "rouge")
        finding = f"texts to write, scored by {kind.metric}"
    return kind, finding, texts, partial(_examples, texts=texts, column=answer, kind=kind)


def _say(line: str) -> None:
    if processes.is_main():
        print(line, file=sys.stderr, flush=True)


def _kind_of(table: Table, column: str) -> tuple[Kind, str]:
    """The kind of task that a label column holds, and what to say of it."""
    values = table.columns[column]
    for row, value in enumerate(values):
        if value is None:
            raise table.refuse(row, column, "no label; give it one or remove the row")
    if any(isinstance(value, list) or (isinstance(value, str) and SEPARATOR in value) for value in values):
        names = sorted({name for value in values for name in _several(value)})
        how = "lists" if isinstance(values[0], list) else f"labels joined by {SEPARATOR}"
        return MultiLabel(tuple(names)), f"{how}: classification with any number of labels ({_listed(names)})"
    for row, value in enumerate(values):
        if isinstance(value, dict) or not str(value).strip():
            raise table.refuse(row, column, "no label; give it one or remove the row")
    numbers = [parse_number(value) for value in values]
    distinct = set(numbers)
    if None not in distinct:
        whole = all(number.is_integer() for number in distinct)
        if not whole or len(distinct) > MOST_WHOLE_NUMBERS:
            finding = f"numbers from {min(distinct):g} to {max(distinct):g}"
            return Regression(), f"{finding}: regression"
        names = [f"{number:g}" for number in sorted(distinct)]
        return SingleLabel(tuple(names)), f"{len(names)} whole numbers: classification ({_listed(names)})"
    names = sorted({_name(value) for value in values})
    if len(names) > max(MOST_WHOLE_NUMBERS, len(values) // 2):
        raise UserError(
            f"{table.path}, column {column!r}: {len(names)} different texts in {len(values)} rows are no labels; "
            "name another column with --label"
        )
    return SingleLabel(tuple(names)), f"{len(names)} different texts: classification ({_listed(names)})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 10 else f"{', '.join(names[:10])} and {len(names) - 10} more"


def _several(value: Any) -> list[str]:
    parts = value if isinstance(value, list) else str(value).split(SEPARATOR)
    return [name for part in parts if (name := _name(part))]


def _name(value: Any) -> str:
    return str(value).strip()


def _examples(table: Table, texts: Sequence[str], column: str, kind: Kind) -> list[Example]:
    examples = []
    for row, (words, value) in enumerate(zip(table.texts(texts), table.columns[column], strict=True)):
        label = _label(value, kind)
        if label is None:
            raise table.refuse(row, column, f"label {value!r}; {_wanted(kind)}")
        examples.append(Example(words, label))
    return examples


def _wanted(kind: Kind) -> str:
    if hasattr(kind, "label_names"):
        return f"known are {_listed(kind.label_names)}"
    return "a text is wanted" if isinstance(kind, TextToText) else "a number is wanted"


def _label(value: Any, kind: Kind) -> Any:
    """As the kind has it; None where it does not know the label."""
    if value is None:
        return None
    if isinstance(kind, Regression):
        return parse_number(value)
    if isinstance(kind, TextToText):
        return value.strip() or None if isinstance(value, str) else None
    positions = {name: index for index, name in enumerate(kind.label_names)}
    if isinstance(kind, MultiLabel):
        indices = [positions.get(name) for name in _several(value)]
        return None if None in indices else tuple(sorted(set(indices)))
    number = parse_number(value)
    return positions.get(_name(value), None if number is None else positions.get(f"{number:g}"))


def _split(whole: list[Example], given: dict[str, list[Example]], texts: int) -> Splits:
    """Rows whose first `texts` texts are the same (case and spacing aside) stay together, and which they go with does
    not depend on their order in the file."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(whole):
        groups.setdefault(_text_hash(example, texts), []).append(index)
    waiting = sorted(groups)
    parts = dict(given)
    taken: set[int] = set()
    for name in ("test", "validation"):
        if name not in given:
            indices: list[int] = []
            while waiting and len(indices) < max(1, round(SHARE * len(whole))):
                indices += groups[waiting.pop(0)]
            parts[name] = [whole[index] for index in sorted(indices)]
            taken.update(indices)
    train = [example for index, example in enumerate(whole) if index not in taken]
    seen = {_text_hash(example, texts) for example in train}
    for name, examples in given.items():
        shared = sum(_text_hash(example, texts) in seen for example in examples)
        if shared:
            _say(f"mind: {shared} of the {name} file's {len(examples)} rows have texts that are trained on, too")
    return Splits(train, parts["validation"], {"test": parts["test"]})


def _text_hash(example: Example, texts: int) -> str:
    words = ["".join(text.lower().split()) for text in example.texts[:texts]]
    return hashlib.sha256(json.dumps([HELD_OUT_SEED, *words]).encode()).hexdigest()
