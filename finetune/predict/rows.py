"""Reading texts from a file of any size, a row at a time: .txt, .csv, .jsonl, each also with .gz behind it.

What is wrong with one row becomes that row's `error`; what is wrong with the file as a whole raises.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hf_tiny_transformer.runs import UserError

FORMATS = (".txt", ".csv", ".jsonl")
LONGEST_FIELD = 2**17  # characters; in a longer one a quote is missing


@dataclass(frozen=True)
class Row:
    """`line` is where it begins, from 1; `texts` are one, or two of a pair, and none beside an `error`."""

    line: int
    texts: tuple[str, ...] = ()
    error: str | None = None


class TextFile:
    """Iterates over the rows of `path`, in order; `position` of `size` bytes are read.

    Args:
        text, pair: columns of a .csv file or fields of a .jsonl file. Where `text` is None it is the column `text`, or
            the only one. A line of a .txt file is a text.

    Raises:
        UserError: on iterating, when the file can't be read or has no such column.
    """

    def __init__(self, path: Path, text: str | None, pair: str | None) -> None:
        self.path, self.text, self.pair = path, text, pair
        self.format = file_format("--input", path, FORMATS)
        if self.format == ".txt" and (text or pair):
            raise UserError(f"--{'text' if text else 'pair'}: a .txt file has no columns; give a .csv or .jsonl file")
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
                line = row.line
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
            absent = [column for column in columns if column not in value]
            texts = [value[column] for column in columns if column in value]
            yield Row(number, error=f"no field {absent[0]!r}") if absent else _row(number, texts)

    def _records(self, stream: TextIO) -> Iterator[Row]:
        csv.field_size_limit(LONGEST_FIELD)  # of the whole process: set where it is needed
        reader = csv.reader(stream)
        header = next(reader, [])
        if not header:
            return
        columns = [header.index(column) for column in self._columns(header, 1)]
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
                yield _row(line, [record[column] for column in columns])

    def _columns(self, names: Sequence[str], line: int) -> list[str]:
        """The columns to read, which must be among `names`."""
        text = self.text or ("text" if "text" in names or len(names) != 1 else names[0])
        for flag, column in (("--text", text), ("--pair", self.pair)):
            if column is not None and column not in names:
                raise UserError(
                    f"{flag} {column}: {self.path}, line {line}, has no such column; it has {', '.join(names)}"
                )
        return [text] if self.pair is None else [text, self.pair]


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
        yield _row(number, [line.removesuffix("\n").removesuffix("\r")])


def _row(line: int, texts: Sequence[Any]) -> Row:
    for text in texts:
        if not isinstance(text, str):
            return Row(line, error=f"not a text: {json.dumps(text)[:50]}")
        if not text.strip():
            return Row(line, error="empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            return Row(line, error="not UTF-8")
    return Row(line, tuple(texts))
