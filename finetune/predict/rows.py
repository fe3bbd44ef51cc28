"""Reading texts from a file of any size, a row at a time: .txt, .csv, .jsonl, each also with .gz behind it; and the
questions of a file in SQuAD's .json, which is read as a whole.

What is wrong with one row becomes that row's `error`; what is wrong with the file as a whole raises.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from hf_tiny_transformer.runs import UserError

from ..squad_data import each_question
from .answers import Texts

FORMATS = (".txt", ".csv", ".jsonl")
LONGEST_FIELD = 2**17  # characters; in a longer one a quote is missing
LIST = "choices"  # the texts of which a row has several


@dataclass(frozen=True)
class Row:
    """`number` is the line where it begins, from 1; there are no `texts` beside an `error`."""

    number: int
    texts: Texts = field(default_factory=dict)
    error: str | None = None


class TextFile:
    """Iterates over the rows of `path`, in order; `position` of `size` bytes are read.

    Args:
        reads: the names of a row's texts, each with the columns of a .csv file, or fields of a .jsonl file, that may
            hold it; without any it is read only if it is `given`. `text` is also found in a file with one column, and
            is a line of a .txt file.
        given: the columns to take instead; for choices one with lists, or several.

    Raises:
        UserError: on iterating, when the file can't be read or has no such column.
    """

    unit = "line"

    def __init__(self, path: Path, reads: Mapping[str, Sequence[str]], given: Mapping[str, Sequence[str]]) -> None:
        self.path, self.reads, self.given = path, reads, given
        self.format = file_format("--input", path, FORMATS)
        self.names = tuple(name for name in reads if reads[name] or name in given)
        if self.format == ".txt":
            for flag in given:
                raise UserError(f"--{flag}: a .txt file has no columns; give a .csv or .jsonl file")
            if self.names != ("text",):
                raise UserError(
                    f"--input {path}: this model reads {' and '.join(self.names)}; give a .csv or .jsonl file"
                )
        try:
            self._raw = path.open("rb")
            self.size = path.stat().st_size
        except FileNotFoundError:
            raise UserError(f"--input {path}: no such file") from None
        except OSError as error:
            raise UserError(f"--input {path}: can't be read ({error.strerror}); check it and its permissions") from None

    @property
    def position(self) -> int:
        return self.size if self._raw.closed else self._raw.tell()

    def __iter__(self) -> Iterator[Row]:
        line = 0
        try:
            for row in {".txt": _lines, ".csv": self._records, ".jsonl": self._objects}[self.format](self._stream()):
                line = row.number
                yield row
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{self.path}, after line {line}: can't be read on ({error}); copy the file again"
            ) from None

    def _stream(self) -> TextIO:
        binary = gzip.GzipFile(fileobj=self._raw) if self.path.suffix == ".gz" else self._raw
        # Only in .csv may a line end inside a row; what is no UTF-8 becomes surrogates, which `_row` finds.
        newline = "" if self.format == ".csv" else "\n"
        return io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline=newline)

    def _objects(self, stream: TextIO) -> Iterator[Row]:
        columns = None
        for number, line in enumerate(stream, start=1):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", error)  # JSONDecodeError's text counts lines, and here is only one
                yield Row(number, error=f"broken JSON ({reason})" if line.strip() else "empty")
                continue
            if not isinstance(value, dict):
                yield Row(number, error="not a JSON object")
                continue
            columns = columns or self._columns(list(value), number)
            absent = [column for of_name in columns.values() for column in of_name if column not in value]
            yield Row(number, error=f"no field {absent[0]!r}") if absent else _row(number, value, columns)

    def _records(self, stream: TextIO) -> Iterator[Row]:
        csv.field_size_limit(LONGEST_FIELD)  # of the whole process: set where it is needed
        reader = csv.reader(stream)
        header = next(reader, [])
        if not header:
            return
        columns = self._columns(header, 1)
        if len(columns.get(LIST, ("", ""))) == 1:
            raise UserError(f"--{LIST} {columns[LIST][0]}: a .csv file has a choice in each column; name two or more")
        places = {column: header.index(column) for of_name in columns.values() for column in of_name}
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(line, error=f"broken CSV up to line {reader.line_num} ({error}); is a quote missing?")
                continue
            if not record:
                continue  # csv's own reading of an empty line
            if len(record) != len(header):
                yield Row(line, error=f"{len(record)} fields, but the header has {len(header)}")
            else:
                yield _row(line, {column: record[place] for column, place in places.items()}, columns)

    def _columns(self, names: Sequence[str], line: int) -> dict[str, Sequence[str]]:
        """The columns to read for each text, which must be among `names`."""
        found: dict[str, Sequence[str]] = {}
        for text in self.names:
            known = [column for column in self.reads[text] if column in names]
            only = names if text == "text" and len(names) == 1 else self.reads[text]
            found[text] = self.given.get(text) or (known or only)[:1]
            for column in found[text]:
                if column not in names:
                    raise UserError(
                        f"--{text} {column}: {self.path}, line {line}, has no such column; it has {', '.join(names)}"
                    )
        return found


def file_format(flag: str, path: Path, known: Sequence[str]) -> str:
    """The ending of a name without its .gz.

    Raises:
        UserError: it is none of `known`.
    """
    name = path.with_suffix("") if path.suffix == ".gz" else path
    if name.suffix not in known:
        raise UserError(f"{flag} {path}: the name must end in {', '.join(known)}, or one of them and .gz")
    return name.suffix


def _lines(stream: TextIO) -> Iterator[Row]:
    for number, line in enumerate(stream, start=1):
        yield checked(number, {"text": line.removesuffix("\n").removesuffix("\r")})


def _row(number: int, record: dict[str, Any], columns: Mapping[str, Sequence[str]]) -> Row:
    texts: Texts = {}
    for name, of_name in columns.items():
        values = [record[column] for column in of_name]
        texts[name] = values if name == LIST and len(values) > 1 else values[0]
    return checked(number, texts)


def checked(number: int, texts: Texts) -> Row:
    """A row, or what is wrong with one of its texts."""
    for name, value in texts.items():
        if name == LIST and (not isinstance(value, list) or len(value) < 2):
            return Row(number, error=f"not a list of two choices or more: {json.dumps(value)[:50]}")
        for text in value if name == LIST else [value]:
            if not isinstance(text, str):
                return Row(number, error=f"not a text: {json.dumps(text)[:50]}")
            if not text.strip():
                return Row(number, error="empty")
            try:
                text.encode()
            except UnicodeEncodeError:
                return Row(number, error="not UTF-8")
    return Row(number, texts)


class SquadFile:
    """Iterates over the questions of a file in SQuAD's JSON, in order, numbered from 1.

    Raises:
        UserError: on iterating, when the file can't be read, or what is around the questions is wrong.
    """

    unit = "question"
    names = ("id", "question", "text")

    def __init__(self, path: Path) -> None:
        self.path, self.position = path, 0
        if not path.is_file():
            raise UserError(f"--input {path}: no such file")
        self._questions = list(each_question(path))
        self.size = len(self._questions)

    def __iter__(self) -> Iterator[Row]:
        for number, (_, _, context, question) in enumerate(self._questions, start=1):
            self.position = number
            words = question.get("question") if isinstance(question, dict) else None
            name = str(question.get("id", number)) if isinstance(question, dict) else str(number)
            yield checked(number, {"id": name, "question": words, "text": context})
