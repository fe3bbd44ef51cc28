"""The training loop."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset
from transformers.utils import ModelOutput

from hf_tiny_transformer.common.errors import DivergedError

from .batches import Batch, BatchSource
from .objectives.masking import IGNORED
from .optimizer import set_learning_rate
from .recipe import Recipe
from .schedule import StagePlan, learning_rate_factor, plan_stages

EXPLODED = 2.0  # multiple of log(vocabulary), the loss of a uniform guess, above which a step is bad
ZERO_STEPS = 5  # a gradient of exactly zero in as many steps in a row means that nothing is computed
BUILDERS = 4  # processes that build batches for a GPU

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a run is: finished steps (`skipped` of them as bad), tokens read, and seconds over all its parts."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    best_step: int = 0
    best_validation_loss: float | None = None


@dataclass
class StepFigures:
    """Figures of one step, over all processes; `grad_norm` is measured before clipping."""

    loss: float
    grad_norm: float
    is_bad: bool
    stop_requested: bool


@dataclass
class BuiltStep:
    """The micro-batches of one process for one step, and their `count_targets`."""

    step: int
    plan: StagePlan
    micro_batches: list[Batch]
    totals: torch.Tensor

    def pin_memory(self) -> BuiltStep:
        """Move all tensors to pinned memory; `DataLoader` calls this."""
        self.micro_batches = [{name: t.pin_memory() for name, t in batch.items()} for batch in self.micro_batches]
        self.totals = self.totals.pin_memory()
        return self


class StepBuilder(Dataset):
    """The steps of a process as a dataset; an item depends on its step alone, so that any process may build it."""

    def __init__(self, loop: TrainingLoop, steps: list[tuple[int, StagePlan]]):
        self.batches, self.recipe, self.steps, self.device = loop.batches, loop.recipe, steps, loop.accelerator.device
        self.rank, self.world = loop.accelerator.process_index, loop.accelerator.num_processes

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> BuiltStep:
        step, plan = self.steps[index]
        size = self.recipe.rows_per_pass(plan.stage, self.device)
        micro_batches = list(self.batches.micro_batches(plan, step, rank=self.rank, world=self.world, size=size))
        return BuiltStep(step, plan, micro_batches, sum(map(count_targets, micro_batches), torch.zeros(2)))


@dataclass
class TrainingLoop:
    """A model with everything that trains it; model and optimizers are prepared by the accelerator.

    `stop_requested` is called at every step; if it returns True in any process, all stop after the step.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizers: list[AcceleratedOptimizer]
    batches: BatchSource
    recipe: Recipe
    max_steps: int
    skip_bad_steps: int = 0
    stop_requested: Callable[[], bool] = lambda: False

    def run(self, progress: Progress, after_step: Callable[[Progress, dict[str, float]], None]) -> bool:
        """Train from `progress.step` to `max_steps`; return False if a request to stop came first.

        Raises:
            DivergedError: There were more bad steps than `skip_bad_steps`; the weights are those before the last one.
        """
        self.model.train()
        zeros, start = 0, time.perf_counter()
        batches = self.prefetched(progress.step)
        built = next(batches, None)
        while built is not None:
            step, stage = built.step, built.plan.stage
            factor = learning_rate_factor(step, self.max_steps, warmup=self.recipe.warmup, decay=self.recipe.decay)
            learning_rate = set_learning_rate(self.optimizers, factor, stage.matrix_learning_rate)
            launched = self.launch(built)
            following = next(batches, None)  # while the device computes
            figures = self.finish(launched)
            if figures.is_bad:
                self._skip(built, figures, progress)
            zeros = zeros + 1 if figures.grad_norm == 0 else 0
            if zeros == ZERO_STEPS:
                raise DivergedError(f"step {step + 1}: all gradients were zero in {zeros} steps; try --compile false")
            progress.step = step + 1
            progress.tokens += stage.batch_size * stage.block_size
            progress.seconds += time.perf_counter() - start
            kept = {"loss": figures.loss, "learning_rate": learning_rate, "grad_norm": figures.grad_norm}
            after_step(progress, kept)
            if figures.stop_requested:
                return False
            built, start = following, time.perf_counter()
        return True

    def launch(self, built: BuiltStep) -> torch.Tensor:
        """Start forward and backward passes; return the loss and three more figures (4,), without waiting for them."""
        self._seed_dropout(built.step)
        device, world = self.accelerator.device, self.accelerator.num_processes
        totals = self.accelerator.reduce(built.totals.to(device, non_blocking=True), reduction="sum")
        loss_sum = torch.zeros((), device=device)
        for number, batch in enumerate(built.micro_batches):
            is_last = number == len(built.micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
                loss = forward(self.model, batch, totals)["loss"]
                loss_sum += loss.detach()
                self.accelerator.backward(loss * world)  # DDP averages gradients over processes; shares must be summed
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        # summed over the processes, so that all of them decide alike
        stop = torch.full((), float(self.stop_requested()), device=device)
        mine = torch.stack((loss_sum, ~torch.isfinite(norm), stop, norm / world))
        return self.accelerator.reduce(mine, reduction="sum")

    def finish(self, launched: torch.Tensor) -> StepFigures:
        """Take the optimizer step, unless its loss or gradient is bad; the only place that waits for the device."""
        loss, bad_norms, wishes, grad_norm = launched.tolist()
        is_bad = bad_norms > 0 or not loss <= self._loss_limit  # NaN <= x is False
        for optimizer in self.optimizers:
            if not is_bad:
                optimizer.step()
            optimizer.zero_grad()
        return StepFigures(loss, grad_norm, is_bad, stop_requested=wishes > 0)

    @cached_property
    def _loss_limit(self) -> float:
        return EXPLODED * math.log(self.accelerator.unwrap_model(self.model).config.vocab_size)

    def _skip(self, built: BuiltStep, figures: StepFigures, progress: Progress) -> None:
        """Count a bad step and report the rows that it read."""
        progress.skipped += 1
        rows = ", ".join(f"{row}" for _, row in self.batches.rows_of_step(built.plan, built.step))
        norm = f", gradient norm {figures.grad_norm:.4g}" if figures.loss <= self._loss_limit else ""
        what = f"step {built.step + 1}: loss {figures.loss:.4g}{norm}, on blocks {rows} of "
        what += f"{built.plan.stage.block_size} tokens"
        if progress.skipped > self.skip_bad_steps:
            raise DivergedError(
                f"{what}. --resume --skip-bad-steps {progress.skipped} continues at the last checkpoint, whose weights "
                "are finite, and skips this step; if that does not help, start a new run with a lower learning rate"
            )
        logger.warning("skipped %s", what)

    def measure_step_seconds(
        self, *, warm_up: int = 3, timed: int | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> float:
        """Return the seconds per step of the slowest process, averaged over the stages by their shares.

        The model is trained by this: use a loop that is discarded afterwards.
        """
        seconds, timed = 0.0, timed or (8 if self.accelerator.device.type == "cpu" else 80)
        for plan in plan_stages(self.recipe, max_steps=10**6):
            steps = self._built([(plan.first + number, plan) for number in range(warm_up + timed)])
            for number, built in enumerate(steps):
                if number == warm_up:
                    start = clock()
                self.finish(self.launch(built))
            seconds += plan.stage.share * (clock() - start) / timed
        mine = torch.tensor([seconds], device=self.accelerator.device)
        return self.accelerator.gather(mine).max().item()

    def _seed_dropout(self, step: int) -> None:
        """Make dropout a function of (seed, step) too: no random state needs saving."""
        entropy = (self.batches.seed, step, self.accelerator.process_index)
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would take a millisecond to seed every backend
        if self.accelerator.device.type != "cpu":
            torch.get_device_module(self.accelerator.device).manual_seed(seed)

    def prefetched(self, first_step: int) -> Iterator[BuiltStep]:
        """Iterate over the batches of all steps from `first_step`."""
        plans = plan_stages(self.recipe, self.max_steps)
        return self._built([(step, plan) for plan in plans for step in range(max(plan.first, first_step), plan.last)])

    def _built(self, steps: list[tuple[int, StagePlan]]) -> Iterator[BuiltStep]:
        """Build batches in order: for a GPU in other processes and in pinned memory, for a CPU when they are needed."""
        on_gpu = self.accelerator.device.type == "cuda"
        can_fork = on_gpu and "fork" in multiprocessing.get_all_start_methods()  # the corpus is mapped, not copied
        return iter(
            DataLoader(
                StepBuilder(self, steps),
                batch_size=None,  # an item is a whole step
                num_workers=min(BUILDERS, os.cpu_count() or 1) if can_fork else 0,
                multiprocessing_context="fork" if can_fork else None,
                pin_memory=on_gpu,
            )
        )


def count_targets(batch: Batch) -> torch.Tensor:
    """Return the number of targets and of rows in a micro-batch, (2,) float."""
    return torch.tensor([(batch["labels"] != IGNORED).sum().item(), len(batch["input_ids"])], dtype=torch.float)


def forward(model: nn.Module, batch: Batch, totals: torch.Tensor) -> ModelOutput:
    """Return the outputs for a micro-batch; `loss` is its share of the step's loss, so that the shares add up.

    Neither the number of micro-batches and processes nor their different sizes change the sum. `totals` is the sum of
    `count_targets` over the whole step, all processes included.
    """
    rows = {"num_sequences_in_batch": totals[1]} if "next_sentence_label" in batch else {}
    if "cu_seq_lens_q" in batch:  # otherwise a compiled model is compiled again for each number of documents
        torch._dynamo.maybe_mark_dynamic(batch["cu_seq_lens_q"], 0)
    return model(**batch, **rows, num_items_in_batch=totals[0], skip_logits=True)
