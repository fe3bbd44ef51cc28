"""The training loop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import ModelOutput

from hf_tiny_transformer.common.errors import DivergedError

from .batches import Batch, BatchSource
from .objectives.masking import IGNORED
from .optimizer import set_learning_rate
from .recipe import Recipe
from .schedule import StagePlan, learning_rate_factor, plan_stages

EXPLODED = 2.0  # multiple of log(vocabulary), the loss of a uniform guess, above which a step is bad

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
class TrainingLoop:
    """A model with everything that trains it; model and optimizers are prepared by the accelerator.

    `stop_requested` is called at every step; if it returns True in any process, all stop after the step.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
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
        for step, plan, micro_batches in self.prefetched(progress.step):
            start = time.perf_counter()
            factor = learning_rate_factor(step, self.max_steps, warmup=self.recipe.warmup, decay=self.recipe.decay)
            learning_rate = set_learning_rate(self.optimizers, factor, plan.stage.matrix_learning_rate)
            figures = self.step(step, micro_batches)
            if figures.is_bad:
                self._skip(step, plan, figures, progress)
            progress.step = step + 1
            progress.tokens += plan.stage.batch_size * plan.stage.block_size
            progress.seconds += time.perf_counter() - start
            kept = {"loss": figures.loss, "learning_rate": learning_rate, "grad_norm": figures.grad_norm}
            after_step(progress, kept)
            if figures.stop_requested:
                return False
        return True

    def step(self, step: int, micro_batches: list[Batch]) -> StepFigures:
        """Take one optimizer step, unless its loss or gradient is bad."""
        self._seed_dropout(step)
        device, world = self.accelerator.device, self.accelerator.num_processes
        totals = self.accelerator.reduce(sum(map(count_targets, micro_batches)).to(device), reduction="sum")
        loss_sum = torch.zeros((), device=device)
        for number, batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                loss = forward(self.model, batch, totals).loss
                loss_sum += loss.detach()
                self.accelerator.backward(loss * world)  # DDP averages gradients over processes; shares must be summed
        grad_norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.gradient_clip))
        # summed over the processes, so that all of them decide alike
        flags = loss_sum.new_tensor([not math.isfinite(grad_norm), self.stop_requested()])
        sums = self.accelerator.reduce(torch.cat((loss_sum[None], flags)), reduction="sum")
        loss, bad_norms, wishes = sums.tolist()
        is_bad = bad_norms > 0 or not loss <= self._loss_limit  # NaN <= x is False
        for optimizer in self.optimizers:
            if not is_bad:
                optimizer.step()
            optimizer.zero_grad()
        return StepFigures(loss, grad_norm, is_bad, stop_requested=wishes > 0)

    @property
    def _loss_limit(self) -> float:
        return EXPLODED * math.log(self.accelerator.unwrap_model(self.model).config.vocab_size)

    def _skip(self, step: int, plan: StagePlan, figures: StepFigures, progress: Progress) -> None:
        """Count a bad step and report the rows that it read."""
        progress.skipped += 1
        rows = ", ".join(f"{row}" for _, row in self.batches.rows_of_step(plan, step))
        norm = f", gradient norm {figures.grad_norm:.4g}" if figures.loss <= self._loss_limit else ""
        what = f"step {step + 1}: loss {figures.loss:.4g}{norm}, on blocks {rows} of {plan.stage.block_size} tokens"
        if progress.skipped > self.skip_bad_steps:
            raise DivergedError(
                f"{what}. The last checkpoint is good: --resume --skip-bad-steps {progress.skipped} skips this step; "
                "if that does not help, start a new run with a lower learning rate"
            )
        logger.warning("skipped %s", what)

    def measure_step_seconds(
        self, *, warm_up: int = 3, timed: int = 8, clock: Callable[[], float] = time.perf_counter
    ) -> float:
        """Return the seconds per step of the slowest process, averaged over the stages by their shares.

        The model is trained by this: use a loop that is discarded afterwards.
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
        """Make dropout a function of (seed, step) too: no random state needs saving."""
        entropy = (self.batches.seed, step, self.accelerator.process_index)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    def _build(self, step: int, plan: StagePlan) -> list[Batch]:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        size = self.recipe.micro_batch_size
        return list(self.batches.micro_batches(plan, step, rank=rank, world=world, size=size))

    def prefetched(self, first_step: int) -> Iterator[tuple[int, StagePlan, list[Batch]]]:
        """Iterate over the micro-batches of each step; a thread builds the next ones during the current step."""
        plans = plan_stages(self.recipe, self.max_steps)
        steps = ((step, plan) for plan in plans for step in range(max(plan.first, first_step), plan.last))
        with ThreadPoolExecutor(max_workers=1) as executor:
            submitted = ((step, plan, executor.submit(self._build, step, plan)) for step, plan in steps)
            following = next(submitted, None)
            while following is not None:
                (step, plan, micro_batches), following = following, next(submitted, None)
                yield step, plan, micro_batches.result()


def count_targets(batch: Batch) -> torch.Tensor:
    """Return the number of targets and of rows in a micro-batch, (2,) float."""
    return torch.tensor([(batch["labels"] != IGNORED).sum().item(), len(batch["input_ids"])], dtype=torch.float)


def forward(model: nn.Module, batch: Batch, totals: torch.Tensor) -> ModelOutput:
    """Return the outputs for a micro-batch; `loss` is its share of the step's loss, so that the shares add up.

    Neither the number of micro-batches and processes nor their different sizes change the sum. `totals` is the sum of
    `count_targets` over the whole step, all processes included.
    """
    rows = {"num_sequences_in_batch": totals[1]} if "next_sentence_label" in batch else {}
    return model(**batch, **rows, num_items_in_batch=totals[0], skip_logits=True)
