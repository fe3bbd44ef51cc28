"""Apply a fine-tuned model to a file of any size: rows of a table -> `Kind.answer` -> rows of a table, in order."""

from __future__ import annotations

import csv
import inspect
import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedConfig, PreTrainedModel

from hf_tiny_transformer.common.arguments import CommandParser, build
from hf_tiny_transformer.common.checkpoints import read_config
from hf_tiny_transformer.common.environment import keep_freed_memory, quieten_libraries, use_gpu
from hf_tiny_transformer.common.errors import UserError, plural
from hf_tiny_transformer.common.files import atomic_file, only_process, require_writable
from hf_tiny_transformer.common.tables import DELIMITERS, FORMATS, TEXT_COLUMN, Record, TableFile, file_format

from .data import CHOICES, Example, texts_of
from .data.squad import each_question
from .kinds import Answer, Checkpoint, Kind, generate, require_finite_outputs, row_length
from .kinds.multiple_choice import MultipleChoice
from .kinds.sequence import SequenceKind
from .kinds.spans import Spans
from .kinds.tagging import Tagging
from .kinds.text_to_text import TextToText
from .settings import check_values

KINDS: tuple[type[Kind], ...] = (SequenceKind, Tagging, Spans, MultipleChoice, TextToText)
PROGRAM = "hf-tiny-transformer predict"
BATCHES_AT_ONCE = 16  # are read, sorted by length and written together
NAMED_ERRORS = 20  # on stderr; all are in the output
SQUAD = ".json"
WRITTEN = (".jsonl", ".csv")
BAR = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
Texts = dict[str, Any]  # a row's texts by name; the choices are a list


@dataclass(frozen=True)
class PredictSettings:
    """Settings of a prediction.

    Args:
        model: Directory or Hub id of a fine-tuned model.
        input: File of texts (.txt, .csv, .tsv, .jsonl, .parquet; text also with .gz); for questions also SQuAD's .json.
        output: File to write (.jsonl or .csv); it must not exist.
        text: Column of the texts; default: text, or the only column; for questions context.
        pair: Column of the second texts of pairs; with choices, of what each choice begins with. Default: none.
        question: Column of the questions; default: question.
        choices: Columns with one choice each, or one column with lists of choices; default: choices.
        batch_size: Texts per batch. Default: 32.
        max_length: Tokens per text; default: the model's limit, but 384 for questions and 128 for generated text.
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
        check_values(self)


def main(argv: list[str]) -> None:
    """Stream the input through the model into the output, and print how many rows there were.

    A row that cannot be read is reported on stderr (the first few of them) and has an `error` in the output.

    Raises:
        UserError: Model, file or columns are wrong; nothing is written then.
    """
    parser = CommandParser(PROGRAM, "Apply a fine-tuned model to every row of a file; one row out for each row in.")
    parser.add_settings(PredictSettings)
    settings = build(PredictSettings, parser.parse(argv))
    quieten_libraries()
    keep_freed_memory()
    if settings.output.suffix not in WRITTEN:
        raise UserError(f"--output {settings.output}: unsupported format; expected {' or '.join(WRITTEN)}")
    if settings.output.exists():
        raise UserError(f"--output {settings.output}: already exists; delete it or name another file")
    require_writable("--output", settings.output)
    trust = settings.trust_remote_code
    config = read_config(settings.model, trust_remote_code=trust)
    kind = kind_of(config, settings.model)
    records, names, table = open_rows(settings, kind)
    unit, first = "line" if table else "question", next(records, None)
    if first is None:
        raise UserError(f"--input {settings.input}: has no rows")
    checkpoint = kind.open(settings.model, config=config, max_length=settings.max_length, trust_remote_code=trust)
    model = use_gpu(checkpoint.build(0, new_head=False))
    answerer = Answerer(kind, checkpoint, model, settings.batch_size)
    started, count, errors = time.perf_counter(), 0, 0
    total, hidden = table.size if table else None, not sys.stderr.isatty()
    with (
        only_process(settings.output, "--output"),
        atomic_file(settings.output) as binary,
        tqdm(total=total, bar_format=BAR, disable=hidden, leave=False) as bar,
    ):
        out = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        write = _writer(settings.output, out, [unit, *names, *kind.fields, "error"])
        stream = itertools.chain([first], records)
        while window := list(itertools.islice(stream, BATCHES_AT_ONCE * settings.batch_size)):
            good = [record.values for record in window if record.error is None]
            answers = iter(answerer(good) if good else [])
            for record in window:
                if record.error is not None:
                    errors += 1
                    problem = f"{settings.input}, {unit} {record.line}: {record.error}"
                    if errors <= NAMED_ERRORS:
                        bar.write(problem, file=sys.stderr)
                answer = next(answers) if record.error is None else {"error": record.error}
                write({unit: record.line, **record.values, **answer})
            count += len(window)
            rate = count / (time.perf_counter() - started)
            bar.set_description_str(f"{count:,} rows, {rate:,.0f} rows/s", refresh=False)
            bar.update(table.position - bar.n if table else len(window))
        out.detach()  # flushes, and leaves the file to be closed
    notes = f", {errors:,} of them with an error" if errors else ""
    notes += f", {answerer.cut:,} truncated to {checkpoint.max_length} tokens" if answerer.cut else ""
    print(f"{plural(count, 'row')}{notes}; {rate:,.0f} rows/s; {settings.output}")


def kind_of(config: PreTrainedConfig, source: str) -> Kind:
    """Return the kind of task that a fine-tuned model was trained for; `source` names it in messages."""
    saved_as = (config.architectures or ["no class"])[0]
    for kind in KINDS:
        if saved_as.endswith(kind.ending):
            return kind.from_config(config)
    known = " or ".join(f"...{kind.ending}" for kind in KINDS)
    problem = f"architectures in config.json names {saved_as}, but predict takes {known}"
    raise UserError(f"--model {source}: {problem}; fine-tune the model first")


class Answerer:
    """Answers rows of texts; `cut` counts those with a text that was longer than `max_length`."""

    def __init__(self, kind: Kind, checkpoint: Checkpoint, model: PreTrainedModel, batch_size: int) -> None:
        self.kind, self.checkpoint, self.model, self.batch_size, self.cut = kind, checkpoint, model, batch_size, 0
        self.known = set(inspect.signature(model.forward).parameters)

    def __call__(self, rows: Sequence[Texts]) -> list[Answer]:
        """Return one answer for each row, in order; all rows have the same names."""
        if isinstance(self.kind, MultipleChoice):
            self.kind = MultipleChoice(shared=len(rows[0]) - 1)
        texts = [[row[name] if name == CHOICES else [row[name]] for name in row if name != "id"] for row in rows]
        examples = [Example(tuple(itertools.chain(*of_row)), []) for of_row in texts]
        split = self.kind.encode(examples, self.checkpoint, labelled=False)
        self.cut += sum(split.cut)
        return self.kind.answer(require_finite_outputs(self._outputs(split.rows)), split)

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
                batch = {n: v.to(self.model.device) for n, v in padded if n in self.known and v is not None}
                if self.kind.generates:
                    kept = self.kind.outputs(generate(self.model, batch, self.checkpoint.max_length))
                else:
                    kept = self.kind.outputs(tuple(self.model(**batch).values()))
                for i, output in zip(chosen, kept.cpu().numpy(), strict=True):
                    outputs[i] = output
        return outputs


def open_rows(settings: PredictSettings, kind: Kind) -> tuple[Iterator[Record], tuple[str, ...], TableFile | None]:
    """Return the rows of the input, the names of their texts, and the table that knows how much of it was read.

    A bad row has an error instead of texts. SQuAD's JSON is not a table: it is read as a whole, and numbered from 1.
    """
    path, flags = settings.input, {name: getattr(settings, name) for name in ("question", "text", "pair", CHOICES)}
    given = {name: [flag] if isinstance(flag, str) else flag for name, flag in flags.items() if flag is not None}
    for flag in given.keys() - kind.reads.keys():
        reads = " and ".join(f"--{name}" for name in kind.reads)
        raise UserError(f"--{flag}: {settings.model} is ...{kind.ending} and reads {reads}; leave it out")
    is_squad = isinstance(kind, Spans) and path.suffix.lower() == SQUAD
    suffix = SQUAD if is_squad else file_format(path, FORMATS, "--input")
    for flag in given if suffix in (SQUAD, ".txt") else ():
        raise UserError(f"--{flag}: a {suffix} file has no columns; leave it out")
    if is_squad:
        fields = {name: [name] for name in ("id", "question", "text")}
        return _texts_of(list(_questions(path)), fields), tuple(fields), None
    names = tuple(name for name in kind.reads if kind.reads[name] or name in given)
    if suffix == ".txt" and names != (TEXT_COLUMN,):
        raise UserError(f"--input {path}: this model reads {' and '.join(names)}; use a .csv or .jsonl file")
    header = TableFile(path, flag="--input").header
    columns: dict[str, Sequence[str]] = {}
    for name in names:
        known = header if name == "text" and len(header) == 1 else kind.reads[name]
        columns[name] = given.get(name) or ([c for c in kind.reads[name] if c in header] or known)[:1]
        if missing := [column for column in columns[name] if column not in header]:
            has = ", ".join(header) or "none"
            raise UserError(f"--{name} {missing[0]}: {path}, line 1, has no such column; it has {has}")
    if len(columns.get(CHOICES, ("", ""))) == 1 and suffix in DELIMITERS:
        raise UserError(f"--{CHOICES}: a {suffix} file has one choice per column; name two or more")
    table = TableFile(path, list(dict.fromkeys(itertools.chain(*columns.values()))), "--input")
    return _texts_of(table, columns), names, table


def _texts_of(table: Iterable[Record], columns: Mapping[str, Sequence[str]]) -> Iterator[Record]:
    """Iterate over the rows' texts; `columns` has the columns of each text."""
    for record in table:
        try:
            yield record if record.error is not None else Record(record.line, texts_of(record.values, columns))
        except ValueError as error:
            yield Record(record.line, error=error.args[0])


def _questions(path: Path) -> Iterator[Record]:
    for number, (_, _, context, question) in enumerate(each_question(path), start=1):
        content = question if isinstance(question, dict) else {}
        texts = {"id": str(content.get("id", number)), "question": content.get("question"), "text": context}
        yield Record(number, texts)


def _writer(output: Path, stream: io.TextIOWrapper, fields: list[str]) -> Callable[[dict[str, Any]], object]:
    """Return a function that writes one row; in .csv, lists and dictionaries are JSON."""
    if output.suffix == ".jsonl":
        return lambda row: stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def spell(value: Any) -> Any:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value

    table = csv.DictWriter(stream, fields)
    table.writeheader()
    return lambda row: table.writerow({name: spell(value) for name, value in row.items()})
