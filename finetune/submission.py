"""Answers to GLUE's hidden test sets in the server's format: one NAME.tsv a task, `index` and `prediction`."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from .checkpoint import Checkpoint
from .glue import load_test
from .settings import FinetuneSettings
from .tasks import TASKS, Task
from .train import ScoredSeed, model_outputs


def answer_test(task: Task, checkpoint: Checkpoint, settings: FinetuneSettings, best: ScoredSeed) -> dict[str, str]:
    """Content by file name, for each of the task's test splits that is there.

    Raises:
        UserError: a test file is broken, or the Hub can't be reached.
    """
    answers = {}
    for name, rows in load_test(task.glue, task.text_columns, settings.data).items():
        examples = [example for _, example in rows]
        split = task.kind.encode_split(examples, checkpoint, labelled=False)
        predictions = task.kind.decode(model_outputs(task.kind, checkpoint, settings, best.model, split), split)
        lines = [f"{index}\t{_spelled(task, value)}" for (index, _), value in zip(rows, predictions, strict=True)]
        answers[f"{name}.tsv"] = "\n".join(["index\tprediction", *lines]) + "\n"
    return answers


def _spelled(task: Task, prediction: int | float) -> str:
    """As the task's own files spell it; STS-B's scores lie between 0 and 5."""
    if task.glue.file_labels:
        return task.glue.file_labels[prediction]
    return f"{min(5.0, max(0.0, prediction)):.3f}"


def expected_files() -> list[str]:
    return [f"{part.name}.tsv" for task in TASKS.values() if task.glue for part in task.glue.test_parts]


def pack(path: Path, folders: Sequence[Path]) -> list[str]:
    """Writes the zip of all answers in `folders` and returns the names of the files it lacks."""
    files = {file.name: file for folder in folders for file in folder.glob("*.tsv")}
    staging = path.with_name(f".{path.name}")
    with zipfile.ZipFile(staging, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.write(files[name], name)
    os.replace(staging, path)
    return [name for name in expected_files() if name not in files]
