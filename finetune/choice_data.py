"""Multiple choice in a file of one's own: where the choices are, and how the file says which one is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from hf_tiny_transformer.runs import UserError

from .examples import Example
from .kinds.multiple_choice import MultipleChoice
from .tables import Table, parse_number

# How a label may name the right choice; each gives its index, or one that no row has.
READINGS = {
    "numbers from 0": lambda value, choices: _index(value, first=0),
    "numbers from 1": lambda value, choices: _index(value, first=1),
    "letters from A": lambda value, choices: _letter(value),
    "the right choice's text": lambda value, choices: _place(value, choices),
}


@dataclass(frozen=True)
class ChoiceColumns:
    """`texts` belong to all choices of a row; `choices` are columns with one each, or one with lists; `reading` of
    the column `label` is one of `READINGS`, and each row has `count` choices."""

    texts: tuple[str, ...]
    choices: tuple[str, ...]
    label: str
    reading: str
    count: int

    @property
    def kind(self) -> MultipleChoice:
        return MultipleChoice(shared=len(self.texts))

    @property
    def text_columns(self) -> tuple[str, ...]:
        """A name for each of an example's texts."""
        if len(self.choices) > 1:
            return (*self.texts, *self.choices)
        return (*self.texts, *(f"{self.choices[0]}[{i}]" for i in range(self.count)))

    @property
    def finding(self) -> str:
        return f"{self.reading}: multiple choice among {self.count}"

    def examples(self, table: Table) -> list[Example]:
        """Raises:
        UserError: a row has more or fewer choices, an empty text, or a label that `reading` does not know.
        """
        found = []
        rows = zip(table.texts(self.texts), _choices(table, self.choices), table.columns[self.label], strict=True)
        for row, (shared, choices, value) in enumerate(rows):
            if len(choices) != self.count:
                problem = f"{len(choices)} choices, but {self.count} in the first row; give each as many"
                raise table.refuse(row, self.choices[0], problem)
            label = READINGS[self.reading](value, choices)
            if not 0 <= label < self.count:
                raise table.refuse(row, self.label, f"label {value!r}; wanted is {self._wanted()}")
            found.append(Example((*shared, *choices), label))
        return found

    def _wanted(self) -> str:
        first, last = {
            "numbers from 0": (0, self.count - 1),
            "numbers from 1": (1, self.count),
            "letters from A": ("A", ascii_uppercase[self.count - 1]),
        }.get(self.reading, (None, None))
        return "the text of exactly one of the row's choices" if first is None else f"{first} to {last}"


def find_choices(table: Table, texts: tuple[str, ...], choices: Sequence[str], label: str) -> ChoiceColumns:
    """Finds out how the labels name the right choice: by that reading that fits all rows.

    Raises:
        UserError: none does, or several that differ; or the choices are no texts.
    """
    rows = list(zip(table.columns[label], _choices(table, choices), strict=True))
    indices = {name: [read(value, texts) for value, texts in rows] for name, read in READINGS.items()}
    fits = {
        name: sum(0 <= index < len(texts) for index, (_, texts) in zip(found, rows, strict=True))
        for name, found in indices.items()
    }
    best = [name for name, count in fits.items() if count == max(fits.values())]  # usually all rows
    if max(fits.values()) == len(rows) and any(indices[name] != indices[best[0]] for name in best):
        readings = " or ".join(best)
        raise UserError(
            f"{table.path}, column {label!r}: may be {readings}, and they differ; write the right choice's letter"
        )
    return ChoiceColumns(texts, tuple(choices), label, best[0], len(rows[0][1]))


def _choices(table: Table, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Row by row, each without the spaces around it."""
    if len(columns) > 1:
        return list(table.texts(columns))
    found = []
    for row, values in enumerate(table.columns[columns[0]]):
        if not isinstance(values, list):
            problem = "is no list; --choices takes a column of lists, or several columns"
            raise table.refuse(row, columns[0], f"{str(values)[:50]!r} {problem}")
        if len(values) < 2:
            raise table.refuse(row, columns[0], f"{len(values)} choices; give it two or more, or remove the row")
        found.append(tuple(table.text(row, columns[0], value) for value in values))
    return found


def _index(value: Any, first: int) -> int:
    number = parse_number(value)
    return int(number) - first if number is not None and number.is_integer() else -1


def _letter(value: Any) -> int:
    letter = str(value).strip().upper()
    return ascii_uppercase.find(letter) if len(letter) == 1 else -1


def _place(value: Any, choices: Sequence[str]) -> int:
    """Of the only choice with this text; -1 where there is none, or more than one."""
    text = str(value).strip()
    return choices.index(text) if choices.count(text) == 1 else -1
