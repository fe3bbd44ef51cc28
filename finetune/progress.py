"""What a training shows between its epochs: a bar in a terminal, a line a minute anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from transformers import ProgressCallback, Trainer, TrainerCallback

from . import processes
from .epochs import EpochRecorder

SECONDS_BETWEEN_LINES = 60.0


def attach(recorder: EpochRecorder, trainer: Trainer) -> None:
    """Makes `trainer` call `recorder`, and one process show how far it is."""
    if not processes.is_main():
        recorder.write = lambda line: None
    elif sys.stderr.isatty():
        bar = _Bar()
        recorder.write = lambda line: bar.training_bar.write(line, file=sys.stderr)
        trainer.add_callback(bar)  # before the recorder: the bar has to be there for the first line
    else:
        trainer.add_callback(_Lines(recorder.title, len(recorder.epochs), recorder.total, recorder.write))
    trainer.add_callback(recorder)


class _Bar(ProgressCallback):
    def on_log(self, *args, **kwargs) -> None:
        """The stock callback prints the raw dictionaries here; `EpochRecorder` has a line for them."""

    def on_prediction_step(self, *args, **kwargs) -> None:
        """No second bar: evaluation takes seconds."""


@dataclass(eq=False)
class _Lines(TrainerCallback):
    """At most one line a minute, for a log: how far, texts a second, time left until the last epoch's end."""

    title: str
    finished_epochs: int  # of an earlier part of the run
    total: int
    write: Callable[[str], None]
    _began: float = field(init=False)
    _last: float = field(init=False)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._began = self._last = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last, seconds = now, now - self._began
        texts = state.global_step * args.train_batch_size * processes.count()
        left = round(seconds / state.global_step * (state.max_steps - state.global_step))
        self.write(
            f"{self.title}  epoch {self.finished_epochs + state.epoch:.2f}/{self.total}  "
            f"{texts / seconds:,.0f} texts/s  {left // 60}:{left % 60:02d} left"
        )
