"""Files of the user's own: read, told what kind of task they hold, and split so that no text is on two sides."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_tiny_transformer.runs import UserError

from . import processes
from .examples import HELD_OUT_SEED, Example, Splits
from .kinds.base import Kind
from .kinds.sequence import SEPARATOR, MultiLabel, Regression, SingleLabel
from .kinds.text_to_text import METRICS, TextToText
from .settings import FinetuneSettings

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl")
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


@dataclass(frozen=True)
class Table:
    """The wanted columns of one file, row by row."""

    path: Path
    columns: dict[str, list[Any]]

    def refuse(self, row: int, column: str, problem: str) -> UserError:
        return UserError(f"{self.path}, line {_line_of(self.path, row)}, column {column!r}: {problem}")


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
    columns = (*texts, answer)
    if len(set(columns)) < len(columns):
        raise UserError(
            f"--text, --pair and --label or --target must name different columns; given are {', '.join(columns)}"
        )
    main = _read(Path(settings.task), columns)
    if settings.target is None:
        kind, finding = _kind_of(main, answer)
    else:
        kind = TextToText(settings.metric or "rouge")
        finding = f"texts to write, scored by {kind.metric}"
    _say(f"{settings.task}: {len(main.columns[answer])} rows; column {answer!r} holds {finding}")
    whole = _examples(main, texts, answer, kind)
    given = {
        name: _examples(_read(Path(file), columns), texts, answer, kind)
        for name in ("validation", "test")
        if (file := getattr(settings, name)) is not None
    }
    splits = _split(whole, given)
    counts = ", ".join(f"{name} {len(examples)}" for name, examples in splits.named().items())
    made = [name for name in ("validation", "test") if name not in given]
    how = f"; {' and '.join(made)} taken from {settings.task} by a hash of the text" if made else ""
    _say(f"rows: {counts}{how}; reported: test")
    name = Path(settings.task).name
    return OwnData(name, f"{name}, column {answer}", kind, texts, splits)


def _check_flags(settings: FinetuneSettings) -> str:
    """The column that holds the answers."""
    if settings.label is not None and settings.target is not None:
        raise UserError("--label and --target: a text gets a label or a text; leave out one of them")
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


def _say(line: str) -> None:
    if processes.is_main():
        print(line, file=sys.stderr, flush=True)


def _read(path: Path, columns: Sequence[str]) -> Table:
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
    numbers = [_number(value) for value in values]
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


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if isinstance(value, bool) or number - number != 0 else number  # neither nan nor infinite


def _examples(table: Table, texts: Sequence[str], column: str, kind: Kind) -> list[Example]:
    examples = []
    rows = zip(*(table.columns[name] for name in texts), strict=True)
    for row, (words, value) in enumerate(zip(rows, table.columns[column], strict=True)):
        for name, text in zip(texts, words, strict=True):
            if not isinstance(text, str) or not text.strip():
                found = "empty" if text is None or not str(text).strip() else f"{text!r} is no text"
                raise table.refuse(row, name, f"{found}; give it a text or remove the row")
        label = _label(value, kind)
        if label is None:
            raise table.refuse(row, column, f"label {value!r}; {_wanted(kind)}")
        examples.append(Example(tuple(text.strip() for text in words), label))
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
        return _number(value)
    if isinstance(kind, TextToText):
        return value.strip() or None if isinstance(value, str) else None
    positions = {name: index for index, name in enumerate(kind.label_names)}
    if isinstance(kind, MultiLabel):
        indices = [positions.get(name) for name in _several(value)]
        return None if None in indices else tuple(sorted(set(indices)))
    number = _number(value)
    return positions.get(_name(value), None if number is None else positions.get(f"{number:g}"))


def _split(whole: list[Example], given: dict[str, list[Example]]) -> Splits:
    """Rows with the same texts (case and spacing aside) stay together, and which they go with does not depend on their
    order in the file."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(whole):
        groups.setdefault(_text_hash(example), []).append(index)
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
    seen = {_text_hash(example) for example in train}
    for name, examples in given.items():
        shared = sum(_text_hash(example) in seen for example in examples)
        if shared:
            _say(f"mind: {shared} of the {name} file's {len(examples)} rows have texts that are trained on, too")
    return Splits(train, parts["validation"], {"test": parts["test"]})


def _text_hash(example: Example) -> str:
    texts = ["".join(text.lower().split()) for text in example.texts]
    return hashlib.sha256(json.dumps([HELD_OUT_SEED, *texts]).encode()).hexdigest()
