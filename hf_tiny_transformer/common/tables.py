"""The one reader of text and table files: .txt, .csv, .tsv, .jsonl, .parquet, and compressed text.

A row is either complete or an error with its line, and no row is dropped silently.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from .errors import UserError, first_line

DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
COMPRESSED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.LZMAFile}
# ValueError, also of Unicode, and NotImplementedError are pyarrow's
DAMAGE = (OSError, EOFError, ValueError, NotImplementedError, zlib.error, lzma.LZMAError)
TEXT_COLUMN = "text"  # the only column of a .txt file

csv.field_size_limit(2**24)  # characters of a quoted field; beyond that its closing quote is missing


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file."""

    line: int  # where it begins, from 1; in .parquet its number
    values: dict[str, Any] = field(default_factory=dict)  # the wanted columns; empty if the row has an error
    error: str | None = None  # why it cannot be read


class TextFile:
    """A text file of any size in UTF-8, or in UTF-16 with a byte-order mark; its name decides the compression.

    `flag` is the flag that named it, for the errors about a missing, unreadable or binary file.
    """

    def __init__(self, path: Path, flag: str = "") -> None:
        self.path, self.where = path, f"{flag} {path}".strip()
        try:
            self._raw = path.open("rb")
            self.size = path.stat().st_size
            probe = self._binary().read(8192)
            self._raw.seek(0)
        except DAMAGE as error:
            raise _unreadable(self.where, error) from None
        self.encoding = "utf-16" if probe[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        if b"\0" in probe and self.encoding == "utf-8-sig":
            raise UserError(f"{self.where}: is binary, not text; name a text file")

    @property
    def position(self) -> int:
        """Bytes of the file, as it is on disk, that were read."""
        return self.size if self._raw.closed else self._raw.tell()

    def lines(self, newline: str | None = None) -> Iterator[tuple[int, str]]:
        """Iterate once over numbered lines with their ends; bytes that are not UTF-8 become lone surrogates.

        `newline` is that of `open`: None accepts all line ends and makes them newlines, "" keeps them.
        """
        number = 0
        try:
            with io.TextIOWrapper(self._binary(), self.encoding, "surrogateescape", newline=newline) as stream:
                for number, line in enumerate(stream, start=1):
                    yield number, line
        except DAMAGE as error:
            raise _unreadable(self.where, error, f"damaged after line {number}") from None

    def _binary(self) -> IO[bytes]:
        opener = COMPRESSED.get(self.path.suffix.lower())
        return self._raw if opener is None else opener(self._raw)


class TableFile:
    """The rows of a file, in order, as often as needed; its name decides the format.

    `columns` are those to read (None: all); each must occur once. `flag` is the flag that named the file.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None = None, flag: str = "") -> None:
        self.path, self.where, self.flag = path, f"{flag} {path}".strip(), flag
        self.format = file_format(path, FORMATS, flag)
        self._row = 0  # of a .parquet file
        self.header = self._read_header()
        self.columns = list(self.header if columns is None else columns)
        for name in self.columns:
            if self.header.count(name) != 1:
                problem = "no column" if name not in self.header else "more than one column"
                raise UserError(f"{self.where}, line 1: {problem} {name!r}; it has {', '.join(self.header) or 'none'}")

    @property
    def size(self) -> int:
        """Bytes on disk; rows of a .parquet file."""
        return self._parquet().metadata.num_rows if self.format == ".parquet" else self._text.size

    @property
    def position(self) -> int:
        """How much of `size` was read."""
        return self._row if self.format == ".parquet" else self._text.position

    def __iter__(self) -> Iterator[Record]:
        """Iterate over the rows; a bad row has an error instead of values."""
        if self.format == ".parquet":
            return self._parquet_rows()
        self._text = TextFile(self.path, self.flag)
        if self.format == ".txt":
            lines = self._text.lines()
            return (_encodable(Record(number, {TEXT_COLUMN: line.removesuffix("\n")})) for number, line in lines)
        return map(_encodable, self._csv_rows() if self.format in DELIMITERS else self._json_rows())

    def checked(self) -> Iterator[Record]:
        """Iterate over the rows; a bad row raises a UserError with its line."""
        for record in self:
            if record.error is not None:
                raise self.refuse(record, record.error)
            yield record

    def refuse(self, record: Record, problem: str, column: str | None = None) -> UserError:
        """Return the error for a row that cannot be used."""
        place = f"{self.path}, line {record.line}" + ("" if column is None else f", column {column!r}")
        return UserError(f"{place}: {problem}")

    def _read_header(self) -> list[str]:
        if self.format == ".parquet":
            return list(self._parquet().schema_arrow.names)
        self._text = TextFile(self.path, self.flag)
        if self.format == ".txt":
            return [TEXT_COLUMN]
        if self.format == ".jsonl":
            return list(next((value for _, value in self._json_values() if isinstance(value, dict)), {}))
        _, header = next(self._csv_fields(), (1, []))
        if isinstance(header, csv.Error):
            raise UserError(f"{self.where}, line 1: broken header ({header}); is a quote missing?")
        return header

    def _json_rows(self) -> Iterator[Record]:
        for number, value in self._json_values():
            if isinstance(value, ValueError | RecursionError):
                yield Record(number, error=f"broken JSON ({getattr(value, 'msg', value)}); correct or remove the line")
            elif not isinstance(value, dict):
                yield Record(number, error="is not a JSON object; each line must be one, like {...}")
            elif missing := [name for name in self.columns if name not in value]:
                yield Record(number, error=f"no field {missing[0]!r}; it has {', '.join(value) or 'none'}")
            else:
                yield Record(number, {name: value[name] for name in self.columns})

    def _json_values(self) -> Iterator[tuple[int, Any]]:
        """Iterate over the numbered values, or the errors in their place."""
        for number, line in self._text.lines("\n"):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield number, error

    def _csv_rows(self) -> Iterator[Record]:
        places, width = {name: self.header.index(name) for name in self.columns}, len(self.header)
        rows = self._csv_fields()
        next(rows, None)
        for line, row in rows:
            if isinstance(row, csv.Error):
                yield Record(line, error=f"broken {self.format[1:].upper()} ({row}); is a quote missing?")
            elif len(row) != width:
                yield Record(line, error=f"{len(row)} fields, but the header has {width}; quote the text")
            else:
                yield Record(line, {name: row[place] for name, place in places.items()})

    def _csv_fields(self) -> Iterator[tuple[int, list[str] | csv.Error]]:
        """Read strictly, header included; after a broken row, continue at the line after the one where it began.

        A missing quote then costs its own row, not all rows up to the next quote.
        """
        lines, waiting = self._text.lines(newline=""), deque[tuple[int, str]]()
        read: list[tuple[int, str]] = []

        def feed() -> Iterator[str]:
            while (numbered := waiting.popleft() if waiting else next(lines, None)) is not None:
                read.append(numbered)
                yield numbered[1]

        reader = csv.reader(feed(), delimiter=DELIMITERS[self.format], strict=True)
        while True:
            read.clear()
            try:
                row = next(reader)
                if row:  # an empty line is not a row
                    yield read[0][0], row
            except StopIteration:
                return
            except csv.Error as error:
                yield read[0][0], error
                waiting.extendleft(reversed(read[1:]))
                reader = csv.reader(feed(), delimiter=DELIMITERS[self.format], strict=True)

    def _parquet(self) -> Any:
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except DAMAGE as error:
            raise _unreadable(self.where, error, "is not a readable parquet file") from None

    def _parquet_rows(self) -> Iterator[Record]:
        self._row = 0
        try:
            for batch in self._parquet().iter_batches(columns=self.columns):
                for values in batch.to_pylist():
                    self._row += 1
                    yield Record(self._row, values)
        except DAMAGE as error:
            raise _unreadable(self.where, error, f"damaged after row {self._row}") from None


def read_lines(path: Path, flag: str = "", newline: str | None = None) -> Iterator[tuple[int, str]]:
    """Iterate over numbered lines, as `TextFile.lines` does, without their ends; all must be UTF-8."""
    for number, line in TextFile(path, flag).lines(newline):
        if (problem := unicode_problem(line)) is not None:
            raise UserError(f"{path}, line {number}: {problem}")
        yield number, line.removesuffix("\n")


def file_format(path: Path, known: Sequence[str], flag: str = "") -> str:
    """Return the format, one of `known`, that a file's name states before the suffix of a compression."""
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    suffix = name.suffix.lower()
    if suffix in known and (suffix != ".parquet" or name == path):
        return suffix
    formats = f"{', '.join(known)} (text also with {', '.join(COMPRESSED)})"
    raise UserError(f"{flag} {path}: unsupported format; expected {formats}".strip())


def parse_number(value: Any) -> float | None:
    """Return a finite number, or None for anything else, including booleans, NaN and infinity."""
    try:
        parsed = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) and not isinstance(value, bool) else None


def unicode_problem(text: str) -> str | None:
    """Describe what keeps a text from being UTF-8: foreign bytes, which decoding made surrogates, or JSON's own."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return f"not UTF-8 (byte {code - 0xDC00:#04x}); convert the file, for example: iconv -f LATIN1 -t UTF-8"
        return f"holds half of a surrogate pair (\\u{code:04x}), which is not a character; correct or remove it"
    return None


def _encodable(record: Record) -> Record:
    """Return the record, or an error if one of its texts cannot be written as UTF-8."""
    for name, value in record.values.items():
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str) and (problem := unicode_problem(text)) is not None:
                return Record(record.line, error=problem if len(record.values) == 1 else f"column {name!r}: {problem}")
    return record


def _unreadable(where: str, error: Exception, problem: str = "cannot be read") -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{where}: no such file; check the path")
    reason = getattr(error, "strerror", None) or first_line(error)
    return UserError(f"{where}: {problem} ({reason}); check the file and its permissions")
