"""What happens at the end of each epoch: a line, the best weights, and all that a continuation needs."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback

from . import processes
from .resume import Unfinished

STATE = "epoch"


@dataclass(eq=False)
class EpochRecorder(TrainerCallback):
    """Writes one line per epoch, keeps the weights of the best one in memory (the earliest among equals), and ends the
    training after `patience` epochs without a better one. With `unfinished` it also keeps there what a killed run needs
    to go on after this epoch, and takes up what it finds of a training with this title."""

    title: str
    main: str  # the metric to choose by
    total: int
    patience: int | None
    unfinished: Unfinished | None = None
    write: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)
    epochs: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -float("inf")
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    _seconds_before: float = 0.0  # of the parts of the run before this one
    _state: dict[str, Any] | None = None  # of the model and what moves it, until the training begins
    _train_loss: float = float("nan")
    _began: float = field(default_factory=time.perf_counter)
    _started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        state = self.unfinished.load(STATE) if self.unfinished else None
        if state is None or state["facts"]["title"] != self.title:
            return
        facts = state["facts"]
        self.epochs, self._seconds_before = facts["epochs"], facts["seconds"]
        self.best_epoch, self.best_score = facts["best_epoch"], facts["best_score"]
        self.best_state, self._state = state.pop("best"), state

    @property
    def seconds(self) -> float:
        """Of this training, its earlier parts included."""
        return self._seconds_before + time.perf_counter() - self._began

    @property
    def ended(self) -> bool:
        out_of_patience = self.patience is not None and len(self.epochs) - self.best_epoch >= self.patience
        return len(self.epochs) >= self.total or out_of_patience

    def on_train_begin(self, args, state, control, model, optimizer, lr_scheduler, **kwargs) -> None:
        if self._state is None:
            return
        self.write(f"{self.title}  goes on after epoch {len(self.epochs)}/{self.total}")
        model.load_state_dict(self._state["model"])
        optimizer.load_state_dict(self._state["optimizer"])
        lr_scheduler.load_state_dict(self._state["scheduler"])
        _set_generators(self._state["generators"][processes.index()])
        self._state = None

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in (logs or {}):
            self._train_loss = logs["loss"]

    def on_evaluate(self, args, state, control, metrics, model, optimizer, lr_scheduler, **kwargs) -> None:
        epoch, score = len(self.epochs) + 1, metrics[self.main]
        seconds = time.perf_counter() - self._started
        self.epochs.append(
            {"epoch": epoch, "train_loss": self._train_loss, "validation": score, "seconds": round(seconds, 2)}
            | ({"validation_scores": metrics} if len(metrics) > 1 else {})
        )
        if score > self.best_score:
            self.best_epoch, self.best_score = epoch, score
            self.best_state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        if self.unfinished is not None:
            self._keep(model, optimizer, lr_scheduler)
        self._started = time.perf_counter()
        self.write(
            f"{self.title}  epoch {epoch}/{self.total}  train loss {self._train_loss:.4f}  "
            f"validation {100 * score:.2f}  {seconds:.1f} s"
        )
        control.should_training_stop = self.ended

    def _keep(self, model, optimizer, lr_scheduler) -> None:
        """By all processes, for each has generators of its own."""
        generators = gather_object([_generators()])
        facts = {
            "title": self.title,
            "epochs": self.epochs,
            "seconds": self.seconds,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
        }
        self.unfinished.save(
            STATE,
            facts,
            best=self.best_state,
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            scheduler=lr_scheduler.state_dict(),
            generators=generators,
        )


def _generators() -> dict[str, Any]:
    """The state of everything that dropout, masking or a model's code may draw from in this process."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_generators(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
