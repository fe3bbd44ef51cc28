"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from .batches import BatchSource
from .checkpoint import Progress
from .loss import count_targets, loss_share, predict
from .optimizer import set_learning_rate
from .recipe import Recipe
from .schedule import StagePlan, learning_rate_factor, plan_stages

MicroBatches = list[dict[str, torch.Tensor]]


@dataclass
class TrainingLoop:
    """What a run trains and with what; `run` moves it on."""

    accelerator: Accelerator
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    batches: BatchSource
    recipe: Recipe
    max_steps: int

    def run(self, progress: Progress, after_step: Callable[[Progress, dict], None]) -> None:
        """Trains from `progress.step` to `max_steps`; calls `after_step(progress, figures)` after each step."""
        self.model.train()
        for step, plan, micro_batches in self._prefetched(progress.step):
            start = time.perf_counter()
            factor = learning_rate_factor(step, self.max_steps, warmup=self.recipe.warmup, decay=self.recipe.decay)
            learning_rate = set_learning_rate(self.optimizers, factor)
            loss, grad_norm = self.step(step, micro_batches)
            progress.step = step + 1
            progress.tokens += plan.stage.batch_size * plan.stage.block_size
            progress.seconds += time.perf_counter() - start
            after_step(progress, {"loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm})

    def step(self, step: int, micro_batches: MicroBatches) -> tuple[float, float]:
        """One optimizer step; returns the loss over all processes and the norm of the gradient before clipping."""
        self._seed_dropout(step)
        device, world = self.accelerator.device, self.accelerator.num_processes
        totals = self.accelerator.reduce(sum(map(count_targets, micro_batches)).to(device), reduction="sum")
        total_loss = torch.zeros((), device=device)
        for number, batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                loss = loss_share(predict(self.model, batch), batch, totals)
                self.accelerator.backward(loss * world)  # DDP averages gradients over processes; shares want the sum
                total_loss += loss.detach()
        grad_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return self.accelerator.reduce(total_loss, reduction="sum").item(), float(grad_norm)

    def measure_step_seconds(self, *, warm_up: int = 3, timed: int = 8) -> float:
        """Seconds per step, averaged over the stages by their shares, of the slowest process.

        It really trains: use a loop that is thrown away afterwards.
        """
        seconds = 0.0
        for plan in plan_stages(self.recipe, max_steps=10**6):
            for number in range(warm_up + timed):
                if number == warm_up:
                    start = time.perf_counter()
                self.step(number, self._build(plan.first + number, plan))
            seconds += plan.stage.share * (time.perf_counter() - start) / timed
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

    def _prefetched(self, first_step: int) -> Iterator[tuple[int, StagePlan, MicroBatches]]:
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
