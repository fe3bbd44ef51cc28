"""Time of fine-tuning with batches grouped by length, beside every text padded to `max_length`, as many scripts do.

python -m benchmarks.padding --model DIR --task rte --data FOLDER
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable

from transformers import DataCollatorWithPadding

import hf_tiny_transformer  # noqa: F401  (registers our model families)
from finetune.checkpoint import Checkpoint, open_checkpoint
from finetune.kinds.sequence import SingleLabel
from finetune.settings import FinetuneSettings
from finetune.tasks import open_task
from finetune.train import EncodedSplits, encode_splits, train_seed
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
    splits = dataclasses.replace(splits, train=splits.train[: arguments.max_rows], reported={})
    checkpoint = open_checkpoint(settings.model, task.kind, dropout=None, max_length=None)
    data = encode_splits(task.kind, splits, checkpoint)
    fixed = FixedLength(task.kind.label_names, task.kind.metrics, task.kind.main)
    times = {"grouped by length": [], "padded to max_length": []}
    for number in range(1, arguments.rounds + 1):  # in turns, so that both see the same machine
        for (name, seconds), kind in zip(times.items(), (task.kind, fixed), strict=True):
            seconds.append(_seconds(kind, checkpoint, settings, data, f"round {number}, {name}"))
    rows = data.train.rows
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    print(f"{task.name}: {len(rows)} rows, {mean:.1f} tokens each in the mean, at most {checkpoint.max_length}")
    best = {name: [min(column) for column in zip(*seconds, strict=True)] for name, seconds in times.items()}
    for name, (wall, cpu) in best.items():
        print(f"{name}: {wall:.2f} s an epoch with its evaluation, {cpu:.2f} s of CPU, the best of {arguments.rounds}")
    wall, cpu = (slow / quick for quick, slow in zip(*best.values(), strict=True))
    print(f"ratio: {wall:.2f} in time, {cpu:.2f} in CPU time")


def _seconds(
    kind: SingleLabel, checkpoint: Checkpoint, settings: FinetuneSettings, data: EncodedSplits, title: str
) -> tuple[float, float]:
    """By the clock, and of this process's CPU time, which tells more where others are at work on the machine."""
    wall, cpu = time.perf_counter(), time.process_time()
    train_seed(kind, checkpoint, settings, data, 1, title=title)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    sys.exit(run_command(main))
