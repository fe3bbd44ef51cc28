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
from transformers import PreTrainedConfig

from hf_tiny_transformer import foreign_code
from hf_tiny_transformer.runs import UserError, keep_freed_memory

from ..commands import CommandParser, at_least
from ..environment import quieten, require_writable_parent
from ..inference import open_model
from ..model_files import read_config
from .answers import Answer, Answerer
from .choices import Choices
from .entities import Entities
from .labels import Labels
from .passages import Passages
from .rows import FORMATS, LIST, Row, SquadFile, TextFile, file_format
from .writing import Writing

PROGRAM = "python -m finetune predict"
BATCHES_AT_ONCE = 16  # are read, sorted by length and written together
NAMED_ERRORS = 20
SQUAD = ".json"
ANSWERERS = (Labels, Entities, Passages, Choices, Writing)
_BAR = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"


@dataclass(frozen=True)
class PredictSettings:
    """What a run is told."""

    model: str
    input: Path
    output: Path
    batch_size: int
    max_length: int | None
    columns: dict[str, list[str]]  # by text, of those that a flag names
    trust_remote_code: bool = False


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
    parser.add_argument("--model", required=True, help="directory or Hub id of a fine-tuned model")
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        help=f"file of texts: {', '.join(FORMATS)}, or with .gz; for question answering also SQuAD's {SQUAD}",
    )
    parser.add_argument("--output", required=True, type=Path, help="file to write: .jsonl or .csv, or with .gz")
    columns = {
        "text": "the column of the texts; default: text, or the only column; of what questions are about: context",
        "pair": "the column of the second texts, of models that read pairs; with choices, of what each begins with",
        "question": "the column of the questions; default: question",
        "choices": "the columns with a choice each, or one column with lists of them; default: choices",
    }
    for name, about in columns.items():
        several = name == LIST
        parser.add_argument(f"--{name}", nargs="+" if several else 1, metavar="COLUMN", help=about)
    parser.add_argument("--batch_size", type=at_least(1), default=32, help="texts at a time (default 32)")
    parser.add_argument(
        "--max_length",
        type=at_least(4),
        help="tokens per text (default: what the model takes; for questions 384, for writing 128, as in training)",
    )
    parser.add_argument("--trust-remote-code", "--trust_remote_code", action="store_true", help=foreign_code.FLAG_HELP)
    flags = vars(parser.parse_args(argv))
    given = {name: value for name in columns if (value := flags.pop(name)) is not None}
    return PredictSettings(**flags, columns=given)


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
    config, answerer = find_answerer(settings.model, trust_remote_code=settings.trust_remote_code)
    source = _open_input(settings, answerer)
    rows = iter(source)
    first = next(rows, None)  # a wrong column shows before the model is opened
    if first is None:
        raise UserError(f"--input {settings.input}: no rows in it; give it texts")
    opened = open_model(
        settings.model,
        config,
        answerer.auto_class,
        max_length=settings.max_length,
        default_length=answerer.default_max_length,
        trust_remote_code=settings.trust_remote_code,
    )
    answer_all = answerer(opened, settings.batch_size)
    started, errors = time.perf_counter(), 0
    with (
        _unfinished(settings.output) as stream,
        tqdm(total=source.size, bar_format=_BAR, disable=not sys.stderr.isatty(), leave=False) as bar,
    ):
        write = _writer(settings.output, stream, [source.unit, *source.names, *answer_all.fields, "error"])
        count = 0
        for window in _windows(itertools.chain([first], rows), BATCHES_AT_ONCE * settings.batch_size):
            for row, answer in zip(window, _answers(answer_all, window), strict=True):
                if row.error is not None:
                    errors += 1
                    _name(f"{settings.input}, {source.unit} {row.number}: {row.error}", errors, bar)
                write({source.unit: row.number, **row.texts, **answer})
            count += len(window)
            rate = count / (time.perf_counter() - started)
            bar.set_description_str(f"{count:,} rows, {rate:,.0f} rows/s", refresh=False)
            bar.update(source.position - bar.n)
    notes = f", {errors:,} of them with an error" if errors else ""
    notes += f", {answer_all.cut:,} cut to {answer_all.max_length} tokens" if answer_all.cut else ""
    print(f"{count:,} rows{notes}; {rate:,.0f} rows/s; {settings.output}")


def find_answerer(source: str, *, trust_remote_code: bool = False) -> tuple[PreTrainedConfig, type[Answerer]]:
    """The model's config, and what answers with such a model.

    Raises:
        UserError: the config can't be read, or it is of a model that answers nothing.
    """
    config = read_config(source, trust_remote_code=trust_remote_code)
    saved_as = (config.architectures or ["no class"])[0]
    for answerer in ANSWERERS:
        if saved_as.endswith(answerer.ending):
            return config, answerer
    known = " or ".join(f"...{answerer.ending}" for answerer in ANSWERERS)
    raise UserError(
        f"--model {source}: config.json says {saved_as}, but predict takes {known}; "
        "fine-tune it first (python -m finetune --task ...)"
    )


def _open_input(settings: PredictSettings, answerer: type[Answerer]) -> TextFile | SquadFile:
    for flag in settings.columns.keys() - answerer.reads.keys():
        reads = " and ".join(f"--{name}" for name in answerer.reads)
        raise UserError(f"--{flag}: {settings.model} is ...{answerer.ending} and reads {reads}; leave it out")
    if answerer is Passages and settings.input.suffix == SQUAD:
        for flag in settings.columns:
            raise UserError(f"--{flag}: SQuAD's {SQUAD} has its own fields; leave it out")
        return SquadFile(settings.input)
    return TextFile(settings.input, answerer.reads, settings.columns)


def _windows(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while window := list(itertools.islice(rows, size)):
        yield window


def _answers(answer_all: Answerer, window: list[Row]) -> Iterator[Answer]:
    good = [row.texts for row in window if row.error is None]
    answers = iter(answer_all(good) if good else [])
    return (next(answers) if row.error is None else {"error": row.error} for row in window)


def _name(problem: str, errors: int, bar: tqdm) -> None:
    if errors <= NAMED_ERRORS:
        bar.write(problem, file=sys.stderr)
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
