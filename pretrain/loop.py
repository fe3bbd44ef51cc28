"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from hf_tiny_transformer.runs import DivergedError

from .batches import BatchSource
from .checkpoint import Progress
from .loss import count_targets, loss_share, predict
from .optimizer import set_learning_rate
from .recipe import Recipe
from .schedule import StagePlan, learning_rate_factor, plan_stages

MicroBatches = list[dict[str, torch.Tensor]]
logger = logging.getLogger(__name__)


EXPLODED = 2.0  # a loss above so many times log(vocabulary), what pure guessing costs, is no setback any more


@dataclass
class StepFigures:
    """Of one step, over all processes. `grad_norm` is that of the gradient before clipping."""

    loss: float
    grad_norm: float
    is_sound: bool
    stop_requested: bool


@dataclass
class TrainingLoop:
    """What a run trains and with what; `run` moves it on.

    Args:
        skip_bad_steps: how many steps with an unsound loss may be passed over.
        stop_requested: asked at every step; where any process says yes, all stop after it.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    batches: BatchSource
    recipe: Recipe
    max_steps: int
    skip_bad_steps: int = 0
    stop_requested: Callable[[], bool] = lambda: False

    def run(self, progress: Progress, after_step: Callable[[Progress, dict], None]) -> bool:
        """Trains from `progress.step` to `max_steps`; calls `after_step(progress, figures)` after each step.

        Returns whether it came to the end, or was asked to stop.

        Raises:
            DivergedError: more steps than `skip_bad_steps` were unsound; the weights are those before the last of them.
        """
        self.model.train()
        for step, plan, micro_batches in self.prefetched(progress.step):
            start = time.perf_counter()
            factor = learning_rate_factor(step, self.max_steps, warmup=self.recipe.warmup, decay=self.recipe.decay)
            learning_rate = set_learning_rate(self.optimizers, factor, plan.stage.matrix_learning_rate)
            figures = self.step(step, micro_batches)
            if not figures.is_sound:
                self._skip(step, plan, figures, progress)
            progress.step = step + 1
            progress.tokens += plan.stage.batch_size * plan.stage.block_size
            progress.seconds += time.perf_counter() - start
            kept = {"loss": figures.loss, "learning_rate": learning_rate, "grad_norm": figures.grad_norm}
            after_step(progress, kept)
            if figures.stop_requested:
                return False
        return True

    def step(self, step: int, micro_batches: MicroBatches) -> StepFigures:
        """One optimizer step, unless its loss or gradient is unsound."""
        self._seed_dropout(step)
        device, world = self.accelerator.device, self.accelerator.num_processes
        totals = self.accelerator.reduce(sum(map(count_targets, micro_batches)).to(device), reduction="sum")
        sums = torch.tensor([0.0, float(self.stop_requested())], device=device)  # loss, wish to stop
        for number, batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            self.accelerator.sync_gradients = is_last  # where DeepSpeed's engine takes its step
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                loss = loss_share(predict(self.model, batch, totals), batch, totals)
                sums[0] += loss.detach()
                if is_last:
                    sums = self.accelerator.reduce(sums, reduction="sum")
                    loss = loss * self._one_or_nan(sums[0])
                self.accelerator.backward(loss * world)  # DDP averages gradients over processes; shares want the sum
        grad_norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip))
        loss, wishes = sums.tolist()
        is_sound = math.isfinite(grad_norm)
        for optimizer in self.optimizers:
            if is_sound:
                optimizer.step()
            optimizer.zero_grad()
        return StepFigures(loss, grad_norm, is_sound, stop_requested=wishes > 0)

    @cached_property
    def _loss_limit(self) -> float:
        return EXPLODED * math.log(self.accelerator.unwrap_model(self.model).config.vocab_size)

    def _one_or_nan(self, loss: torch.Tensor) -> torch.Tensor:
        """The factor by which an unsound loss makes its gradient unsound: one sign for both, which DeepSpeed's engine,
        stepping within the backward pass, sees too. A tensor: the device need not be waited for."""
        return torch.where(loss <= self._loss_limit, 1.0, torch.nan)  # a NaN is not <= anything

    def _skip(self, step: int, plan: StagePlan, figures: StepFigures, progress: Progress) -> None:
        """Counts an unsound step, and says which rows it read."""
        progress.skipped += 1
        rows = ", ".join(f"{row}" for _, row in self.batches.rows_of_step(plan, step))
        norm = f", gradient norm {figures.grad_norm:.4g}" if figures.loss <= self._loss_limit else ""
        what = f"step {step + 1}: loss {figures.loss:.4g}{norm}, on blocks {rows} of {plan.stage.block_size} tokens"
        if progress.skipped > self.skip_bad_steps:
            raise DivergedError(
                f"{what}. The last checkpoint is good: --resume --skip-bad-steps {progress.skipped} passes over it; "
                "where that does not help, begin anew with a lower learning rate"
            )
        logger.warning("passed over %s", what)

    def measure_step_seconds(
        self, *, warm_up: int = 3, timed: int = 8, clock: Callable[[], float] = time.perf_counter
    ) -> float:
        """Seconds by `clock` per step, averaged over the stages by their shares, of the slowest process.

        It really trains: use a loop that is thrown away afterwards.
        """
        seconds = 0.0
        for plan in plan_stages(self.recipe, max_steps=10**6):
            for number in range(warm_up + timed):
                if number == warm_up:
                    start = clock()
                self.step(number, self._build(plan.first + number, plan))
            seconds += plan.stage.share * (clock() - start) / timed
        mine = torch.tensor([seconds], device=self.accelerator.device)
        return self.accelerator.gather(mine).max().item()

    def _seed_dropout(self, step: int) -> None:
        """Dropout too is a function of (seed, step): nothing random needs saving."""
        entropy = (self.batches.seed, step, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    def _build(self, step: int, plan: StagePlan) -> MicroBatches:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        size = self.recipe.micro_batch_size
        return list(self.batches.micro_batches(plan, step, rank=rank, world=world, size=size))

    def prefetched(self, first_step: int) -> Iterator[tuple[int, StagePlan, MicroBatches]]:
        """Each step's micro-batches, built by one thread while the step before is computed."""
        plans = plan_stages(self.recipe, self.max_steps)
        steps = ((step, plan) for plan in plans for step in range(max(plan.first, first_step), plan.last))
        with ThreadPoolExecutor(max_workers=1) as executor:
            pending = None
            for step, plan in steps:
                following = step, plan, executor.submit(self._build, step, plan)
                if pending is not None:
                    yield pending[0], pending[1], pending[2].result()
                pending = following
            if pending is not None:
                yield pending[0], pending[1], pending[2].result()
