"""Scores of `finetune` and of a plain `Trainer`, configured like `run_glue.py`, on the same rows.

    python -m benchmarks.plain_trainer --model DIR --task sst2 --data FOLDER --max-rows 8000 --seeds 3

Checkpoint, rows, batch size, learning rate and epochs are the same. Padding, order of batches, optimizer and evaluation
are each side's own. Scores are on the validation rows after the last epoch: nothing is selected, and the reported split
is not read.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

import hf_tiny_transformer  # noqa: F401  (registers our model families)
from finetune.data import Splits
from finetune.kinds.sequence import SingleLabel
from finetune.settings import FinetuneSettings
from finetune.tasks import Task, open_task
from finetune.train import Training, train_seed
from hf_tiny_transformer.common.environment import quieten_libraries
from hf_tiny_transformer.common.errors import UserError, run_command

from .command import parse


@dataclass(frozen=True)
class PlainTrainerSettings:
    """What to compare.

    Args:
        model: Model directory.
        task: A task with one label per text, such as sst2 or mrpc.
        data: Folder of the task's data.
        max_rows: Number of training rows, drawn at random.
        seeds: Number of seeds per side.
        epochs: Number of epochs.
        learning_rate: Peak learning rate.
    """

    model: str
    task: str
    data: str
    max_rows: int = 8000
    seeds: int = 3
    epochs: int = 1
    learning_rate: float = 5e-5


def main() -> None:
    given = parse("plain_trainer", __doc__, PlainTrainerSettings)
    quieten_libraries()
    settings = FinetuneSettings(
        given.model,
        given.task,
        "unused",
        data=given.data,
        epochs=given.epochs,
        learning_rate=given.learning_rate,
        warmup_ratio=0.0,  # run_glue.py's defaults
        weight_decay=0.0,
    )
    task, splits = open_single_label(settings)
    rows = random.Random(0).sample(splits.train, min(given.max_rows, len(splits.train)))
    checkpoint = task.kind.open(settings.model)
    train, validation = (task.kind.encode(part, checkpoint) for part in (rows, splits.validation))
    training = Training(task.kind, checkpoint, settings, train, validation)
    scores: dict[str, list[float]] = {"finetune": [], "plain Trainer": []}
    for seed in range(1, given.seeds + 1):
        with tempfile.TemporaryDirectory() as scratch:
            trained = train_seed(training, Path(scratch), seed, f"finetune, seed {seed}")
        scores["finetune"].append(trained.epochs[-1]["validation"])
        scores["plain Trainer"].append(_plain(training, seed))
    print(f"{task.name}: {len(train.rows):,} training rows, {len(validation.rows):,} validation rows")
    print(f"| | {task.kind.main}, % | seeds |\n| --- | ---: | --- |")
    for name, found in scores.items():
        spread = f" ± {100 * statistics.stdev(found):.2f}" if len(found) > 1 else ""
        each = ", ".join(f"{100 * score:.2f}" for score in found)
        print(f"| {name} | {100 * statistics.mean(found):.2f}{spread} | {each} |")


def open_single_label(settings: FinetuneSettings) -> tuple[Task, Splits]:
    """Open a task with one label per text.

    Raises:
        UserError: It is another kind of task, or its data cannot be read.
    """
    task, splits = open_task(settings)
    if not isinstance(task.kind, SingleLabel):
        raise UserError(f"--task {settings.task}: expected a task with one label per text, such as sst2 or mrpc")
    return task, splits


def _plain(training: Training, seed: int) -> float:
    """Train with Trainer alone, as `run_glue.py` does, and return the score."""
    kind, settings, checkpoint = training.kind, training.settings, training.checkpoint
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model_init=lambda: AutoModelForSequenceClassification.from_pretrained(
                settings.model, num_labels=len(kind.label_names)
            ),
            args=TrainingArguments(
                scratch,
                seed=seed,
                num_train_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                per_device_train_batch_size=settings.batch_size,
                save_strategy="no",
                report_to="none",
                log_level="error",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=training.train.rows,
            data_collator=DataCollatorWithPadding(checkpoint.tokenizer),
        )
        trainer.train()
        logits = trainer.predict(training.validation.rows).predictions
    return kind.scores(kind.outputs(torch.from_numpy(logits)).numpy(), training.validation)[kind.main]


if __name__ == "__main__":
    sys.exit(run_command(main))
