"""Time of fine-tuning with batches grouped by length, compared with padding every text to `max_length`.

python -m benchmarks.padding --model DIR --task rte --data FOLDER
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune.kinds.base import Checkpoint
from transformers import DataCollatorWithPadding

from finetune.kinds.sequence import SingleLabel
from finetune.settings import FinetuneSettings
from finetune.train import Training, train_seed
from hf_tiny_transformer.common.environment import quieten_libraries
from hf_tiny_transformer.common.errors import run_command

from .command import parse
from .plain_trainer import open_single_label


@dataclass(frozen=True)
class PaddingSettings:
    """What to measure.

    Args:
        model: Model directory.
        task: A task with one label per text, such as sst2 or mrpc.
        data: Folder of the task's data.
        rounds: Number of epochs per side; the fastest counts.
        max_rows: Number of training rows, from the start of the split.
    """

    model: str
    task: str
    data: str
    rounds: int = 3
    max_rows: int = 2000


class FixedLength(SingleLabel):
    """Pads every batch to the longest text that the model is given."""

    def collator(self, checkpoint: Checkpoint) -> Callable:
        """Return a collator that pads to `max_length`."""
        return DataCollatorWithPadding(checkpoint.tokenizer, padding="max_length", max_length=checkpoint.max_length)


def main() -> None:
    given = parse("padding", __doc__, PaddingSettings)
    quieten_libraries()
    settings = FinetuneSettings(given.model, given.task, "unused", data=given.data, epochs=1)
    task, splits = open_single_label(settings)
    checkpoint = task.kind.open(settings.model)
    parts = splits.train[: given.max_rows], splits.validation
    training = Training(task.kind, checkpoint, settings, *(task.kind.encode(part, checkpoint) for part in parts))
    fixed = FixedLength(task.kind.label_names, task.kind.metric, task.kind.metrics, task.kind.main)
    times = {"grouped by length": [], "padded to max_length": []}
    for number in range(1, given.rounds + 1):  # in turns, so that both run under the same load
        for (name, seconds), kind in zip(times.items(), (task.kind, fixed), strict=True):
            seconds.append(_seconds(dataclasses.replace(training, kind=kind), f"round {number}, {name}"))
    rows = training.train.rows
    mean = sum(len(row["input_ids"]) for row in rows) / len(rows)
    print(f"{task.name}: {len(rows)} rows of {mean:.1f} tokens on average, at most {checkpoint.max_length}")
    best = {name: [min(column) for column in zip(*seconds, strict=True)] for name, seconds in times.items()}
    for name, (wall, cpu) in best.items():
        print(f"{name}: {wall:.2f} s per epoch with its evaluation, {cpu:.2f} s of CPU, best of {given.rounds}")
    wall, cpu = (slow / quick for quick, slow in zip(*best.values(), strict=True))
    print(f"ratio: {wall:.2f} in time, {cpu:.2f} in CPU time")


def _seconds(training: Training, title: str) -> tuple[float, float]:
    """Return wall time and CPU time; the latter depends less on other work on the machine."""
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        train_seed(training, Path(scratch), 1, title)
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    sys.exit(run_command(main))
