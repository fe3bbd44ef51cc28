"""Checkpoints as transactions: each is a model directory, plus the state that a resume needs."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedTokenizerFast

from hf_tiny_transformer.common.checkpoints import require_finite
from hf_tiny_transformer.common.errors import UserError, one_line
from hf_tiny_transformer.common.files import atomic_directory, atomic_write_json, damage

from .loop import Progress, TrainingLoop
from .metrics import METRICS_FILE
from .settings import RunSettings

SAVES_PER_RUN = 4
STATE_FILE, OPTIMIZER_FILE = "training_state.json", "training_state.pt"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_NAME = re.compile(r"step-(\d+)")

logger = logging.getLogger(__name__)


def save_checkpoint(
    directory: Path, loop: TrainingLoop, tokenizer: PreTrainedTokenizerFast, progress: Progress, metrics: Path
) -> None:
    """Write a checkpoint with a copy of the file `metrics`, complete or not at all.

    Every process calls this, because a sharded model must be gathered; the main process writes. The files do not depend
    on how the run is distributed: weights and optimizer state are complete and stored by parameter names.

    Raises:
        DivergedError: Weights are not finite.
    """
    model = loop.accelerator.unwrap_model(loop.model)
    weights = get_model_state_dict(model, options=WHOLE)
    states = [_optimizer_state(model, optimizer) for optimizer in loop.optimizers]
    if not loop.accelerator.is_main_process:
        return
    moments = {f"{n}.{key}": t for s in states for n, of in s["state"].items() for key, t in of.items()}
    everything = weights | moments
    tensors = {name: value for name, value in everything.items() if isinstance(value, torch.Tensor)}
    advice = "this step was not saved; start a new run with a lower learning rate"
    require_finite(tensors, f"step {progress.step}", advice)
    with atomic_directory(directory) as staging:
        if metrics.is_file():
            shutil.copyfile(metrics, staging / metrics.name)
        tied = model.all_tied_weights_keys  # once gathered they are copies, and the file would have the matrix twice
        weights = {name: tensor for name, tensor in weights.items() if name not in tied}
        model.save_pretrained(staging, state_dict=weights)
        tokenizer.save_pretrained(staging)
        torch.save({"optimizers": states}, staging / OPTIMIZER_FILE)
        atomic_write_json(staging / STATE_FILE, asdict(progress))


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the directory of the checkpoint of a step."""
    return run / "checkpoints" / f"step-{step}"


def checkpoint_steps(run: Path) -> list[int]:
    """Return the steps of all complete checkpoints, rising."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(int(m[1]) for p in found if (m := _NAME.fullmatch(p.name)) and p.is_dir())


def intact_checkpoint(run: Path, *, needs_best: bool) -> int | None:
    """Return the step of the newest checkpoint to resume from, or None; a damaged one is reported and renamed.

    With `needs_best`, the checkpoint of its best validation loss must be intact too.
    """
    for step in checkpoint_steps(run):
        path = checkpoint_path(run, step)
        if (problem := damage(path)) is not None:
            logger.warning("%s: %s; it is now %s.damaged, and not used", path, problem, path.name)
            path.rename(f"{path}.damaged")
    steps = checkpoint_steps(run)
    for step in reversed(steps):
        if not needs_best or read_progress(checkpoint_path(run, step)).best_step in (0, *steps):
            return step
    return None


def load_checkpoint(directory: Path, loop: TrainingLoop) -> Progress:
    """Load a checkpoint's weights and optimizer state, on any number of processes, and return its progress.

    Raises:
        UserError: A file is damaged or does not fit the model.
    """
    model = loop.accelerator.unwrap_model(loop.model)
    try:
        weights = load_file(directory / "model.safetensors")
        for target, source in model.all_tied_weights_keys.items():
            weights.setdefault(target, weights[source])
        set_model_state_dict(model, dict(weights), options=WHOLE)
        states = torch.load(directory / OPTIMIZER_FILE, weights_only=True, map_location="cpu")["optimizers"]
        for optimizer, state in zip(loop.optimizers, states, strict=True):
            if state["state"]:
                known = optimizer.param_groups[0].keys()  # torch.optim.Muon, of older runs, has more settings
                groups = [{name: group[name] for name in known & group.keys()} for group in state["param_groups"]]
                state["param_groups"] = groups
                set_optimizer_state_dict(model, optimizer.optimizer, optim_state_dict=state, options=WHOLE)
        return read_progress(directory)
    except Exception as error:  # safetensors, pickle, zip and json each have their own types for a damaged file
        raise UserError(
            f"{directory}: is damaged or of another model ({type(error).__name__}: {one_line(error, 200)}); "
            "delete this checkpoint to resume from the one before it"
        ) from None


def read_progress(directory: Path) -> Progress:
    """Return the progress that is stored in a checkpoint."""
    return Progress(**json.loads((directory / STATE_FILE).read_text(encoding="utf-8")))


def _optimizer_state(model: nn.Module, prepared: AcceleratedOptimizer) -> dict:
    """Return the state by parameter names; before the first step it is empty, and torch would take one to get it."""
    optimizer = prepared.optimizer  # inside Accelerate's wrapper
    return get_optimizer_state_dict(model, optimizer, options=WHOLE) if optimizer.state else {"state": {}}


class Saver:
    """Decides when a checkpoint is written and which ones are kept; every process calls it after each step."""

    def __init__(self, output: Path, settings: RunSettings, loop: TrainingLoop, tokenizer: PreTrainedTokenizerFast):
        self.output, self.settings, self.loop, self.tokenizer = output, settings, loop, tokenizer
        self.every_steps = settings.save_steps or max(1, loop.max_steps // SAVES_PER_RUN)
        self.saved_at = time.monotonic()

    def after_step(self, progress: Progress, figures: dict[str, float]) -> None:
        """Record a new best validation loss, and save a checkpoint if one is due."""
        loss, best = figures.get("validation_loss"), progress.best_validation_loss
        is_best = loss is not None and (best is None or loss < best)
        if is_best:
            progress.best_validation_loss, progress.best_step = loss, progress.step
        if self._due(progress) or progress.step == self.loop.max_steps or (is_best and self.settings.save_best):
            self.save(progress)

    def save(self, progress: Progress) -> None:
        """Write the checkpoint of this step, and delete all but the last `keep_last`, step 0 and the best one."""
        self.saved_at = time.monotonic()
        if progress.step in checkpoint_steps(self.output):
            return
        path = checkpoint_path(self.output, progress.step)
        save_checkpoint(path, self.loop, self.tokenizer, progress, self.output / METRICS_FILE)
        if self.loop.accelerator.is_main_process and self.settings.keep_last is not None:
            for step in checkpoint_steps(self.output)[: -self.settings.keep_last]:
                if step not in (0, progress.best_step):
                    shutil.rmtree(checkpoint_path(self.output, step))
        self.loop.accelerator.wait_for_everyone()

    def _due(self, progress: Progress) -> bool:
        if self.settings.save_minutes is None:
            return progress.step % self.every_steps == 0
        due = time.monotonic() - self.saved_at >= 60 * self.settings.save_minutes
        mine = torch.tensor([float(due)], device=self.loop.accelerator.device)
        return bool(self.loop.accelerator.reduce(mine, reduction="sum").item())  # clocks differ
