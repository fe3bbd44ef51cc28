"""Time of fine-tuning with batches grouped by length, beside every text padded to `max_length`, as many scripts do.

python -m benchmarks.padding --model DIR --task rte --data FOLDER
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from transformers import DataCollatorWithPadding

import hf_tiny_transformer  # noqa: F401  (registers our model families)
from finetune.kinds import Checkpoint
from finetune.kinds.sequence import SingleLabel
from finetune.settings import FinetuneSettings
from finetune.tasks import open_task
from finetune.train import Training, train_seed
from hf_tiny_transformer.common.environment import quieten_libraries
from hf_tiny_transformer.common.errors import run_command


class FixedLength(SingleLabel):
    """Pads every batch to the longest text that the model is given."""

    def collator(self, checkpoint: Checkpoint) -> Callable:
        return DataCollatorWithPadding(checkpoint.tokenizer, padding="max_length", max_length=checkpoint.max_length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for flag in ("model", "task", "data"):
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-rows", type=int, default=2000, help="of the training split")
    arguments = parser.parse_args()
    quieten_libraries()
    settings = FinetuneSettings(arguments.model, arguments.task, "unused", data=arguments.data, epochs=1)
    task, splits = open_task(settings)
    checkpoint = task.kind.open(settings.model)
    parts = splits.train[: arguments.max_rows], splits.validation
    training = Training(task.kind, checkpoint, settings, *(task.kind.encode(part, checkpoint) for part in parts))
    fixed = FixedLength(task.kind.label_names, task.kind.metric, task.kind.metrics, task.kind.main)
    times = {"grouped by length": [], "padded to max_length": []}
    for number in range(1, arguments.rounds + 1):  # in turns, so that both see the same machine
        for (name, seconds), kind in zip(times.items(), (task.kind, fixed), strict=True):
            seconds.append(_seconds(dataclasses.replace(training, kind=kind), f"round {number}, {name}"))
    rows = training.train.rows
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    print(f"{task.name}: {len(rows)} rows, {mean:.1f} tokens each in the mean, at most {checkpoint.max_length}")
    best = {name: [min(column) for column in zip(*seconds, strict=True)] for name, seconds in times.items()}
    for name, (wall, cpu) in best.items():
        print(f"{name}: {wall:.2f} s an epoch with its evaluation, {cpu:.2f} s of CPU, the best of {arguments.rounds}")
    wall, cpu = (slow / quick for quick, slow in zip(*best.values(), strict=True))
    print(f"ratio: {wall:.2f} in time, {cpu:.2f} in CPU time")


def _seconds(training: Training, title: str) -> tuple[float, float]:
    """By the clock, and of this process's CPU time, which tells more where others are at work on the machine."""
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        train_seed(training, Path(scratch), 1, title)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    sys.exit(run_command(main))
