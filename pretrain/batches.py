"""A batch is a pure function of (seed, step): no loader state, so a resume replays nothing.

The order of an epoch is a permutation seeded by (seed, stage, epoch); what happens to a row is drawn from a generator
seeded by (seed, stage, epoch, row number). Neither the number of processes nor of micro-batches enters.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

from .objectives import Objective
from .schedule import StagePlan

ORDER, ROWS = 0, 1  # what a generator is for: the two never share a seed


class BatchSource:
    """The batches of one corpus under one objective.

    Args:
        seed: of the run.
        single_row: join a batch's rows into one, (1, B * T), where positions tell the documents apart: what flash
            attention reads packed documents from.
    """

    def __init__(self, objective: Objective, *, seed: int, single_row: bool = False):
        self.objective, self.seed, self.single_row = objective, seed, single_row
        self._order = lru_cache(maxsize=2)(self._permutation)

    def rows_of_step(self, plan: StagePlan, step: int) -> list[tuple[int, int]]:
        """(epoch, row number) of every row of a step, over all processes."""
        first = (step - plan.first) * plan.stage.batch_size
        size = self.objective.count(plan.stage.block_size)
        rows = []
        for n in range(first, first + plan.stage.batch_size):
            epoch, offset = divmod(n, size)
            rows.append((epoch, int(self._order(plan.index, epoch, size)[offset])))
        return rows

    def micro_batches(
        self, plan: StagePlan, step: int, *, rank: int, world: int, size: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        """This process's rows of a step (every `world`-th, from `rank`), `size` at a time."""
        rows = self.rows_of_step(plan, step)[rank::world]
        for i in range(0, len(rows), size):
            yield self.build(rows[i : i + size], plan.index, plan.stage.block_size, plan.stage.mask_rate)

    def validation_batches(
        self, block_size: int, *, mask_rate: float | None, blocks: int, size: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        """The first `blocks` rows in order; masks depend on the seed and the row alone."""
        rows = [(0, i) for i in range(min(blocks, self.objective.count(block_size)))]
        for i in range(0, len(rows), size):
            yield self.build(rows[i : i + size], 0, block_size, mask_rate)

    def build(
        self, rows: list[tuple[int, int]], stage: int, block_size: int, mask_rate: float | None
    ) -> dict[str, torch.Tensor]:
        """The batch of these (epoch, row number)s; see `Objective.build`."""
        generators = [np.random.default_rng((self.seed, ROWS, stage, epoch, row)) for epoch, row in rows]
        batch = self.objective.build(np.array([row for _, row in rows]), generators, block_size, mask_rate)
        if self.single_row and "position_ids" in batch:  # targets are (N,) already, by place in the flattened rows
            batch |= {name: batch[name].reshape(1, -1) for name in ("input_ids", "position_ids")}
        return batch

    def _permutation(self, stage: int, epoch: int, size: int) -> np.ndarray:
        return np.random.default_rng((self.seed, ORDER, stage, epoch)).permutation(size)
