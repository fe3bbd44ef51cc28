"""Files of the user's own, .csv, .tsv and .jsonl: the wanted columns, and errors that name file, line and column."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_tiny_transformer.runs import UserError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl")


@dataclass(frozen=True)
class Table:
    """The wanted columns of one file, row by row."""

    path: Path
    columns: dict[str, list[Any]]

    def refuse(self, row: int, column: str, problem: str) -> UserError:
        return UserError(f"{self.path}, line {_line_of(self.path, row)}, column {column!r}: {problem}")

    def text(self, row: int, column: str, value: Any) -> str:
        """`value`, which the row has in the column, without the spaces around it.

        Raises:
            UserError: it is no text, or an empty one.
        """
        if not isinstance(value, str) or not value.strip():
            found = "empty" if value is None or not str(value).strip() else f"{value!r} is no text"
            raise self.refuse(row, column, f"{found}; give it a text or remove the row")
        return value.strip()

    def texts(self, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Row by row.

        Raises:
            UserError: one of them is no text, or an empty one.
        """
        for row, values in enumerate(zip(*(self.columns[name] for name in columns), strict=True)):
            yield tuple(self.text(row, name, value) for name, value in zip(columns, values, strict=True))


def read_table(path: Path, columns: Sequence[str]) -> Table:
    """Raises:
    UserError: the file or one of the columns is missing, or it can't be read; the message names the line.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: is none of {', '.join(SUFFIXES)}; convert it")
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    _check_utf8(path)
    with tempfile.TemporaryDirectory() as cache:  # datasets' own would grow with every version of the file
        kept = {"cache_dir": cache, "keep_in_memory": True}
        try:
            if path.suffix.lower() == ".jsonl":
                table = datasets.Dataset.from_json(str(path), **kept)
            else:
                delimiter = DELIMITERS[path.suffix.lower()]
                features = datasets.Features({name: datasets.Value("string") for name in _header(path, columns)})
                table = datasets.Dataset.from_csv(
                    str(path), features=features, sep=delimiter, keep_default_na=False, **kept
                )
        except UserError:
            raise
        except Exception as error:  # pandas', pyarrow's and datasets' own, each with the reason as its cause
            raise UserError(_reading_problem(path, error)) from None
    for name in columns:
        if name not in table.column_names:
            raise UserError(f"{path}: no column {name!r}; it has {', '.join(table.column_names)}")
    if not len(table):
        raise UserError(f"{path}: no rows; give it labelled texts")
    return Table(path, {name: table[name][:] for name in columns})


def parse_number(value: Any) -> float | None:
    """None for what is no number; nan and infinity are none."""
    try:
        parsed = float(value)
    except (TypeError, ValueError):
        return None
    return None if isinstance(value, bool) or parsed - parsed != 0 else parsed


def _header(path: Path, columns: Sequence[str]) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = next(csv.reader(stream, delimiter=DELIMITERS[path.suffix.lower()]), [])
    for name in columns:
        if header.count(name) != 1:
            problem = "no column" if name not in header else "more than one column"
            raise UserError(f"{path}, line 1: {problem} {name!r}; it has {', '.join(header) or 'none'}")
    return header


def _check_utf8(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    raise UserError(f"{path}, line {number}: not UTF-8; convert the file to UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); check its permissions") from None


def _reading_problem(path: Path, error: BaseException) -> str:
    """The line that is to blame where it can be found, else the reader's own words."""
    if path.suffix.lower() == ".jsonl":
        lines = list(_json_lines(path))
        for number, line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError as broken:
                return f"{path}, line {number}, column {broken.colno}: broken JSON ({broken.msg}); mend the line"
            if not isinstance(row, dict):
                return f"{path}, line {number}: not a JSON object; each line is one, like {{...}}"
        if not lines:
            return f"{path}: no rows; give it labelled texts"
    if "no data" in str(error):  # datasets' words for a header alone
        return f"{path}: no rows; give it labelled texts"
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{path}: can't be read ({' '.join(str(error).split())[:200]}); mend it"


def _json_lines(path: Path) -> Iterable[tuple[int, str]]:
    with path.open(encoding="utf-8-sig") as stream:
        yield from ((number, line) for number, line in enumerate(stream, start=1) if line.strip())


def _line_of(path: Path, row: int) -> int:
    """The line on which a row begins; a field in quotes may span several."""
    if path.suffix.lower() == ".jsonl":
        return [number for number, _ in _json_lines(path)][row]
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader, starts, before = csv.reader(stream, delimiter=DELIMITERS[path.suffix.lower()]), [], 0
        for fields in reader:
            if fields:
                starts.append(before + 1)
            before = reader.line_num
    return starts[row + 1]  # the header is the first
