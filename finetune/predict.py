"""Apply a fine-tuned model to a file of any size: rows of a table -> `Kind.answer` -> rows of a table, in order."""

from __future__ import annotations

import csv
import gzip
import inspect
import io
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from hf_tiny_transformer.common.arguments import CommandParser, build
from hf_tiny_transformer.common.checkpoints import read_config
from hf_tiny_transformer.common.environment import keep_freed_memory, quieten_libraries
from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import require_writable_parent
from hf_tiny_transformer.common.tables import FORMATS, TEXT_COLUMN, Record, TableFile, file_format

from .data import Example
from .data.squad import each_question
from .kinds import Checkpoint, Kind, from_config
from .kinds.base import Answer, row_length
from .kinds.multiple_choice import MultipleChoice
from .kinds.spans import Spans

PROGRAM = "python -m finetune predict"
BATCHES_AT_ONCE = 16  # are read, sorted by length and written together
NAMED_ERRORS = 20
SQUAD = ".json"
WRITTEN = (".jsonl", ".csv")
CHOICES = "choices"  # the texts of which a row has several
_BAR = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
Texts = dict[str, Any]  # a row's texts by name; the choices are a list


@dataclass(frozen=True)
class PredictSettings:
    """Settings of a prediction.

    Args:
        model: Directory or Hub id of a fine-tuned model.
        input: File of texts (.txt, .csv, .tsv, .jsonl, .parquet; text also with .gz); for questions also SQuAD's .json.
        output: File to write (.jsonl or .csv, also with .gz); it must not exist.
        text: Column of the texts; default: text, or the only column; for questions context.
        pair: Column of the second texts of pairs; with choices, of what each choice begins with. Default: none.
        question: Column of the questions; default: question.
        choices: Columns with one choice each, or one column with lists of choices; default: choices.
        batch_size: Texts per batch. Default: 32.
        max_length: Tokens per text; default: what the model takes, for questions 384 and for generated text 128, as in
            training.
        trust_remote_code: Run Python that the model's files name (auto_map).
    """

    model: str
    input: Path
    output: Path
    text: str | None = None
    pair: str | None = None
    question: str | None = None
    choices: list[str] | None = None
    batch_size: int = 32
    max_length: int | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("max_length", 4)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} {value}: must be at least {least}")

    @property
    def columns(self) -> dict[str, list[str]]:
        """The columns that flags name, by text."""
        given = {"question": self.question, "text": self.text, "pair": self.pair, CHOICES: self.choices}
        return {
            name: [value] if isinstance(value, str) else value for name, value in given.items() if value is not None
        }


def main(argv: list[str]) -> None:
    """Run the command.

    Raises:
        UserError: A flag is unknown, missing or wrong, or as `predict`.
    """
    parser = CommandParser(PROGRAM, "Apply a fine-tuned model to every row of a file; one row out for each row in.")
    parser.add_settings(PredictSettings)
    predict(build(PredictSettings, parser.parse(argv)))


def predict(settings: PredictSettings) -> None:
    """Stream the input through the model into the output, and print how many rows there were.

    A row that cannot be read is reported on stderr (the first few of them) and has an `error` in the output.

    Raises:
        UserError: Model, file or columns are wrong; nothing is written then.
    """
    quieten_libraries()
    keep_freed_memory()
    file_format(settings.output, WRITTEN, "--output")
    if settings.output.exists():
        raise UserError(f"--output {settings.output}: already exists; delete it or name another file")
    require_writable_parent("--output", settings.output)
    trust = settings.trust_remote_code
    config = read_config(settings.model, trust_remote_code=trust)
    kind = from_config(config, settings.model)
    rows = open_rows(settings, kind)
    stream = iter(rows)
    first = next(stream, None)
    if first is None:
        raise UserError(f"--input {settings.input}: has no rows")
    checkpoint = kind.open(settings.model, config=config, max_length=settings.max_length, trust_remote_code=trust)
    model = checkpoint.build(0, new_head=False).to("cuda" if torch.cuda.is_available() else "cpu")
    answerer = Answerer(kind, checkpoint, model, settings.batch_size)
    started, count, errors = time.perf_counter(), 0, 0
    with (
        _staged(settings.output) as out,
        tqdm(total=rows.size, bar_format=_BAR, disable=not sys.stderr.isatty(), leave=False) as bar,
    ):
        write = _writer(settings.output, out, [rows.unit, *rows.names, *kind.fields, "error"])
        stream = itertools.chain([first], stream)
        while window := list(itertools.islice(stream, BATCHES_AT_ONCE * settings.batch_size)):
            good = [record.values for record in window if record.error is None]
            answers = iter(answerer(good) if good else [])
            for record in window:
                if record.error is not None:
                    errors += 1
                    _report(f"{settings.input}, {rows.unit} {record.line}: {record.error}", errors, bar)
                answer = next(answers) if record.error is None else {"error": record.error}
                write({rows.unit: record.line, **record.values, **answer})
            count += len(window)
            rate = count / (time.perf_counter() - started)
            bar.set_description_str(f"{count:,} rows, {rate:,.0f} rows/s", refresh=False)
            bar.update(rows.position - bar.n)
    notes = f", {errors:,} of them with an error" if errors else ""
    notes += f", {answerer.cut:,} truncated to {checkpoint.max_length} tokens" if answerer.cut else ""
    print(f"{count:,} rows{notes}; {rate:,.0f} rows/s; {settings.output}")


@dataclass
class Answerer:
    """Answers rows of texts; `cut` counts those with a text that was longer than `max_length`."""

    kind: Kind
    checkpoint: Checkpoint
    model: PreTrainedModel
    batch_size: int
    cut: int = 0
    _known: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._known = set(inspect.signature(self.model.forward).parameters)

    def __call__(self, rows: Sequence[Texts]) -> list[Answer]:
        """Return one answer for each row, in order; all rows have the same names."""
        if isinstance(self.kind, MultipleChoice):
            self.kind = MultipleChoice(shared=len(rows[0]) - 1)
        examples = [Example(tuple(_flatten(row)), []) for row in rows]
        split = self.kind.encode(examples, self.checkpoint, labelled=False)
        self.cut += sum(split.cut)
        return self.kind.answer(self._outputs(split.rows), split)

    @torch.inference_mode()
    def _outputs(self, rows: Sequence[dict[str, Any]]) -> list[np.ndarray]:
        """Run rows of similar length together; with choices, rows with equally many."""

        def choices(i: int) -> int:
            ids = rows[i]["input_ids"]
            return len(ids) if isinstance(ids[0], list) else 0

        collate = self.kind.collator(self.checkpoint)
        outputs: list[np.ndarray] = [np.empty(0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: (choices(i), row_length(rows[i])))
        for _, group in itertools.groupby(order, key=choices):
            while chosen := list(itertools.islice(group, self.batch_size)):
                padded = collate([rows[i] for i in chosen]).items()  # without labels, seq2seq's collator adds None
                read = {name: v for name, v in padded if name in self._known and v is not None}
                batch = {name: values.to(self.model.device) for name, values in read.items()}
                if self.kind.generates:
                    logits = self.model.generate(**batch, max_length=self.checkpoint.max_length)
                else:
                    logits = tuple(self.model(**batch).values())
                for i, output in zip(chosen, self.kind.outputs(logits).cpu().numpy(), strict=True):
                    outputs[i] = output
        return outputs


class Rows:
    """The rows of a table as texts by name; a bad row has an error instead.

    Args:
        path: The file.
        kind: Its `reads` names the texts. `text` is also found in a file with one column.
        given: The columns to take instead of the default ones.

    Raises:
        UserError: The file cannot be read, or has no such column.
    """

    unit = "line"

    def __init__(self, path: Path, kind: Kind, given: dict[str, list[str]]) -> None:
        self.names = tuple(name for name in kind.reads if kind.reads[name] or name in given)
        kind_of_file = file_format(path, FORMATS, "--input")
        if kind_of_file == ".txt":
            for flag in given:
                raise UserError(f"--{flag}: a .txt file has no columns; use a .csv or .jsonl file")
            if self.names != (TEXT_COLUMN,):
                needed = " and ".join(self.names)
                raise UserError(f"--input {path}: this model reads {needed}; use a .csv or .jsonl file")
        header = TableFile(path, flag="--input").header
        self.columns = {name: self._find(path, name, kind.reads[name], given, header) for name in self.names}
        if len(self.columns.get(CHOICES, ("", ""))) == 1 and kind_of_file in (".csv", ".tsv"):
            column = self.columns[CHOICES][0]
            raise UserError(f"--{CHOICES} {column}: a {kind_of_file} file has one choice per column; name two or more")
        self.table = TableFile(path, list(dict.fromkeys(itertools.chain(*self.columns.values()))), "--input")
        self.size = self.table.size

    @property
    def position(self) -> int:
        """How much of `size` was read."""
        return self.table.position

    def __iter__(self) -> Iterator[Record]:
        for record in self.table:
            texts: Texts = {}
            for name, columns in self.columns.items() if record.error is None else ():
                values = [record.values[column] for column in columns]
                texts[name] = values if name == CHOICES and len(values) > 1 else values[0]
            yield record if record.error is not None else checked(record.line, texts)

    @staticmethod
    def _find(
        path: Path, name: str, known: Sequence[str], given: dict[str, list[str]], header: Sequence[str]
    ) -> Sequence[str]:
        """Return the columns of one text."""
        only = header if name == "text" and len(header) == 1 else known
        columns = given.get(name) or ([column for column in known if column in header] or only)[:1]
        for column in columns:
            if column not in header:
                has = ", ".join(header) or "none"
                raise UserError(f"--{name} {column}: {path}, line 1, has no such column; it has {has}")
        return columns


class SquadRows:
    """The questions of a file in SQuAD's JSON, in order, numbered from 1; the file is read as a whole."""

    unit = "question"
    names = ("id", "question", "text")

    def __init__(self, path: Path) -> None:
        self.position, self.questions = 0, list(each_question(path))
        self.size = len(self.questions)

    def __iter__(self) -> Iterator[Record]:
        for number, (_, _, context, question) in enumerate(self.questions, start=1):
            self.position = number
            content = question if isinstance(question, dict) else {}
            name = str(content.get("id", number))
            yield checked(number, {"id": name, "question": content.get("question"), "text": context})


def open_rows(settings: PredictSettings, kind: Kind) -> Rows | SquadRows:
    """Open the input.

    Raises:
        UserError: A flag does not apply to the model, or the file is wrong.
    """
    given = settings.columns
    for flag in given.keys() - kind.reads.keys():
        reads = " and ".join(f"--{name}" for name in kind.reads)
        raise UserError(f"--{flag}: {settings.model} is ...{kind.ending} and reads {reads}; leave it out")
    if isinstance(kind, Spans) and settings.input.suffix.lower() == SQUAD:
        for flag in given:
            raise UserError(f"--{flag}: SQuAD's {SQUAD} has its own fields; leave it out")
        return SquadRows(settings.input)
    return Rows(settings.input, kind, given)


def checked(line: int, texts: Texts) -> Record:
    """Return a row, or what is wrong with one of its texts."""
    for name, value in texts.items():
        if name == CHOICES and (not isinstance(value, list) or len(value) < 2):
            return Record(line, error=f"not a list of two choices or more: {json.dumps(value)[:50]}")
        for text in value if name == CHOICES else [value]:
            if not isinstance(text, str):
                return Record(line, error=f"not a text: {json.dumps(text, default=str)[:50]}")
            if not text.strip():
                return Record(line, error="empty")
    return Record(line, texts)


def _flatten(texts: Texts) -> Iterator[str]:
    """Return a row's texts in the order of its names, without its id."""
    for name, value in texts.items():
        if name != "id":
            yield from value if isinstance(value, list) else [value]


def _report(problem: str, errors: int, bar: tqdm) -> None:
    if errors <= NAMED_ERRORS:
        bar.write(problem, file=sys.stderr)
    elif errors == NAMED_ERRORS + 1:
        bar.write("further rows with errors are only in the output, in the field error", file=sys.stderr)


@contextmanager
def _staged(output: Path) -> Iterator[TextIO]:
    """Yield a stream into OUTPUT.unfinished, which becomes OUTPUT when all is written; on an error it is removed.

    Raises:
        UserError: The output cannot be written.
    """
    staging = output.with_name(output.name + ".unfinished")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as raw:
            binary = gzip.GzipFile(filename="", fileobj=raw, mode="wb") if output.suffix == ".gz" else raw
            stream = io.TextIOWrapper(binary, encoding="utf-8", newline="")
            yield stream
            stream.detach()  # flushes; closing the text stream would close `raw` before it is on the disk
            if binary is not raw:
                binary.close()
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(staging, output)
    except BaseException as error:
        staging.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise UserError(f"--output {output}: cannot be written ({reason}); name another file") from None
        raise


def _writer(output: Path, stream: TextIO, fields: list[str]) -> Callable[[dict[str, Any]], object]:
    """Return a function that writes one row; in .csv, lists and dictionaries are JSON."""
    if file_format(output, WRITTEN, "--output") == ".jsonl":
        return lambda row: stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    table = csv.DictWriter(stream, fields)
    table.writeheader()
    return lambda row: table.writerow(
        {
            name: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
            for name, value in row.items()
        }
    )
