"""When a checkpoint is written, and which ones are kept."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from .checkpoint import Progress, checkpoint_path, checkpoint_steps, save_checkpoint
from .loop import TrainingLoop
from .settings import RunSettings

SAVES_PER_RUN = 4


class Saver:
    """Saves checkpoints; every process calls it after each step, and the main process writes."""

    def __init__(self, output: Path, loop: TrainingLoop, tokenizer: PreTrainedTokenizerFast, settings: RunSettings):
        self.output, self.loop, self.tokenizer, self.settings = output, loop, tokenizer, settings
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
        """Write the checkpoint of this step, then delete those that are not kept."""
        self.saved_at = time.monotonic()
        accelerator = self.loop.accelerator
        if progress.step in checkpoint_steps(self.output):
            return
        save_checkpoint(self.output, progress, accelerator, self.loop.model, self.loop.optimizers, self.tokenizer)
        if accelerator.is_main_process:
            self._delete_old(progress)
        accelerator.wait_for_everyone()

    def _due(self, progress: Progress) -> bool:
        if self.settings.save_minutes is None:
            return progress.step % self.every_steps == 0
        due = time.monotonic() - self.saved_at >= 60 * self.settings.save_minutes
        if self.loop.accelerator.num_processes == 1:
            return due
        mine = torch.tensor([float(due)], device=self.loop.accelerator.device)
        return bool(
            self.loop.accelerator.reduce(mine, reduction="sum").item()
        )  # clocks differ

    def _delete_old(self, progress: Progress) -> None:
        """Delete all but the last `keep_last` checkpoints, step 0 and the best one."""
        if self.settings.keep_last is None:
            return
        steps = checkpoint_steps(self.output)
        for step in steps[: -self.settings.keep_last]:
            if step not in (0, progress.best_step):
                shutil.rmtree(checkpoint_path(self.output, step))
