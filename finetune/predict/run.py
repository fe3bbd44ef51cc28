"""`python -m finetune predict`: a fine-tuned model's answers to a file of texts, of any size, in the file's order."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from hf_tiny_transformer.runs import UserError, keep_freed_memory

from ..commands import CommandParser, at_least
from ..environment import quieten, require_writable_parent
from .answers import Answer, Predictor, open_predictor
from .rows import FORMATS, Row, TextFile, file_format

PROGRAM = "python -m finetune predict"
BATCHES_AT_ONCE = 16  # are read, sorted by length and written together
NAMED_ERRORS = 20
_BAR = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"


@dataclass(frozen=True)
class PredictSettings:
    """What a run is told."""

    model: str
    input: Path
    output: Path
    text: str | None
    pair: str | None
    batch_size: int


def main(argv: list[str]) -> None:
    """Raises:
    UserError: a flag is unknown, missing or wrong, or anything that `predict` refuses.
    """
    settings = parse_settings(argv[1:])
    import hf_tiny_transformer  # noqa: F401  (registers our model families with the Auto classes)

    predict(settings)


def parse_settings(argv: list[str]) -> PredictSettings:
    """Raises:
    UserError: an unknown flag, a missing one, or a wrong value.
    """
    parser = CommandParser(PROGRAM, "Answer every text of a file with a fine-tuned model; one row out for each row in.")
    parser.add_argument("--model", required=True, help="directory or Hub id of a text or token classifier")
    parser.add_argument("--input", required=True, type=Path, help=f"file of texts: {', '.join(FORMATS)}, or with .gz")
    parser.add_argument("--output", required=True, type=Path, help="file to write: .jsonl or .csv, or with .gz")
    parser.add_argument("--text", help="the column of the texts; default: text, or the only column")
    parser.add_argument("--pair", help="the column of the second texts, of models that read pairs")
    parser.add_argument("--batch_size", type=at_least(1), default=32, help="texts at a time (default 32)")
    return PredictSettings(**vars(parser.parse_args(argv)))


def predict(settings: PredictSettings) -> None:
    """Streams `settings.input` through the model into `settings.output`, and prints how many rows there were.

    A row that can't be read is named on stderr, the first few of them, and has an `error` in the output.

    Raises:
        UserError: model, file or columns are wrong; then there is no output.
    """
    quieten()
    keep_freed_memory()
    file_format("--output", settings.output, (".jsonl", ".csv"))
    if settings.output.exists():
        raise UserError(f"--output {settings.output}: already there; remove it or name another file")
    require_writable_parent("--output", settings.output)
    source = TextFile(settings.input, settings.text, settings.pair)
    rows = iter(source)
    first = next(rows, None)  # a wrong column shows before the model is opened
    if first is None:
        raise UserError(f"--input {settings.input}: no rows in it; give it texts")
    predictor = open_predictor(settings.model, settings.batch_size, pairs=settings.pair is not None)
    started, errors = time.perf_counter(), 0
    names = ["text", "pair"][: 1 if settings.pair is None else 2]
    with (
        _unfinished(settings.output) as stream,
        tqdm(total=source.size, bar_format=_BAR, disable=not sys.stderr.isatty(), leave=False) as bar,
    ):
        write = _writer(settings.output, stream, ["line", *names, *predictor.fields, "error"])
        count = 0
        for window in _windows(itertools.chain([first], rows), BATCHES_AT_ONCE * settings.batch_size):
            for row, answer in zip(window, _answers(predictor, window), strict=True):
                if row.error is not None:
                    errors += 1
                    _name(settings.input, row, errors, bar)
                write({"line": row.line, **dict(zip(names, row.texts, strict=False)), **answer})
            count += len(window)
            rate = count / (time.perf_counter() - started)
            bar.set_description_str(f"{count:,} rows, {rate:,.0f} rows/s", refresh=False)
            bar.update(source.position - bar.n)
    notes = f", {errors:,} of them with an error" if errors else ""
    notes += f", {predictor.cut:,} cut to {predictor.opened.max_length} tokens" if predictor.cut else ""
    print(f"{count:,} rows{notes}; {rate:,.0f} rows/s; {settings.output}")


def _windows(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while window := list(itertools.islice(rows, size)):
        yield window


def _answers(predictor: Predictor, window: list[Row]) -> Iterator[Answer]:
    good = [row.texts for row in window if row.error is None]
    answers = iter(predictor(good) if good else [])
    return (next(answers) if row.error is None else {"error": row.error} for row in window)


def _name(path: Path, row: Row, errors: int, bar: tqdm) -> None:
    if errors <= NAMED_ERRORS:
        bar.write(f"{path}, line {row.line}: {row.error}", file=sys.stderr)
    elif errors == NAMED_ERRORS + 1:
        bar.write("more such rows are named in the output only, in the field error", file=sys.stderr)


@contextmanager
def _unfinished(output: Path) -> Iterator[TextIO]:
    """A stream into OUTPUT.unfinished, which becomes OUTPUT when all is written, and vanishes on an error.

    Raises:
        UserError: the disk refuses.
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
            raise UserError(f"--output {output}: can't be written ({error.strerror or error}); change it") from None
        raise


def _writer(output: Path, stream: TextIO, fields: list[str]) -> Callable[[dict], object]:
    """A function that writes one row; lists and dictionaries are JSON in .csv too."""
    if file_format("--output", output, (".jsonl", ".csv")) == ".jsonl":
        return lambda row: stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    table = csv.DictWriter(stream, fields)
    table.writeheader()
    return lambda row: table.writerow(
        {
            key: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
            for key, value in row.items()
        }
    )
