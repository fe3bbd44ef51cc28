"""A control of the bench itself: `finetune` beside a plain `Trainer`, set up as `run_glue.py` sets it up.

    python -m benchmarks.plain_trainer --model DIR --task sst2 --data FOLDER --max-rows 8000 --seeds 3

Same checkpoint, rows, batch size, rate and epochs; padding, order of batches, optimizer and evaluation are each side's
own. Scores are on the validation rows, after the last epoch: nothing is chosen, and the reported split is not read.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

import hf_tiny_transformer  # noqa: F401  (registers our model families)
from finetune.kinds.sequence import SingleLabel
from finetune.settings import FinetuneSettings
from finetune.tasks import open_task
from finetune.train import Training, train_seed
from hf_tiny_transformer.common.environment import quieten_libraries
from hf_tiny_transformer.common.errors import run_command


def main() -> None:
    """Both sides in turns, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag in ("model", "task", "data"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--max-rows", type=int, default=8000, help="of the training split, drawn at random")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    arguments = parser.parse_args()
    quieten_libraries()
    settings = FinetuneSettings(
        arguments.model,
        arguments.task,
        "unused",
        data=arguments.data,
        epochs=arguments.epochs,
        learning_rate=arguments.learning_rate,
        warmup_ratio=0.0,  # run_glue.py's default
        weight_decay=0.0,  # likewise
    )
    task, splits = open_task(settings)
    if not isinstance(task.kind, SingleLabel):
        parser.error(f"--task {arguments.task}: only tasks with one label are compared, such as sst2 or mrpc")
    rows = random.Random(0).sample(splits.train, min(arguments.max_rows, len(splits.train)))
    checkpoint = task.kind.open(settings.model)
    train, validation = (task.kind.encode(part, checkpoint) for part in (rows, splits.validation))
    training = Training(task.kind, checkpoint, settings, train, validation)
    scores: dict[str, list[float]] = {"finetune": [], "plain Trainer": []}
    for seed in range(1, arguments.seeds + 1):
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


def _plain(training: Training, seed: int) -> float:
    """The same training as a script with nothing but transformers would write it."""
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
