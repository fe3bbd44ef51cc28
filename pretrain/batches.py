"""A batch is a pure function of (seed, step): there is no loader state, so that a resume replays nothing.

The order of an epoch is a permutation seeded by (seed, stage, epoch). The random choices in a row are a function of
(seed, stage, epoch, row number). Neither depends on the number of processes or micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

from .data.packed import PackedTokens, open_packed
from .data.prepare import PreparedData
from .data.tokenizer import VocabularyFacts, vocabulary_facts
from .objectives import Objective
from .objectives.masking import MaskedTokens
from .objectives.next_token import NextToken
from .objectives.random_rows import RandomRows
from .objectives.segment_pairs import SegmentPairs
from .objectives.span_corruption import SpanCorruption
from .recipe import Recipe
from .schedule import StagePlan
from .varlen import document_bounds

ORDER = 0  # separates the seeds of the orders from other seeds
VALIDATION_MASK_RATE = 0.15  # BERT's, so that figures compare across recipes
VALIDATION_SEED = 0
OBJECTIVES = {"mlm": MaskedTokens, "mlm_nsp": SegmentPairs, "next_token": NextToken, "span_corruption": SpanCorruption}

Batch = dict[str, torch.Tensor]


def make_objective(name: str, data: PackedTokens, facts: VocabularyFacts, *, masking: str) -> Objective:
    """Return the objective of a recipe, by its fields `objective` and `masking`."""
    return OBJECTIVES[name](data, facts, masking)


class BatchSource:
    """The batches of one split under one objective.

    With `bounds` a batch also has those of its documents, which `varlen.py` reads instead of a mask.
    """

    def __init__(self, objective: Objective, *, seed: int, bounds: bool = False):
        self.objective, self.seed, self.bounds = objective, seed, bounds

    def rows_of_step(self, plan: StagePlan, step: int) -> np.ndarray:
        """Return (epoch, row number) of every row of a step, over all processes, as (B, 2) integers."""
        first = (step - plan.first) * plan.stage.batch_size
        size = self.objective.count(plan.stage.block_size)
        epochs, places = np.divmod(np.arange(first, first + plan.stage.batch_size), size)
        rows = [epoch_order(self.seed, plan.index, epoch, size)[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.stack((epochs, np.concatenate(rows)), axis=1)

    def micro_batches(self, plan: StagePlan, step: int, *, rank: int, world: int, size: int) -> Iterator[Batch]:
        """Iterate over the rows of a process (every `world`-th, from `rank`), `size` at a time."""
        rows = self.rows_of_step(plan, step)[rank::world]
        for i in range(0, len(rows), size):
            yield self.build(rows[i : i + size], plan.index, plan.stage.block_size, plan.stage.mask_rate)

    def validation_batches(
        self, block_size: int, *, mask_rate: float | None, blocks: int, size: int
    ) -> Iterator[Batch]:
        """Iterate over the first `blocks` rows in order; masks depend on the seed and the row alone."""
        numbers = np.arange(min(blocks, self.objective.count(block_size)))
        rows = np.stack((np.zeros_like(numbers), numbers), axis=1)
        for i in range(0, len(rows), size):
            yield self.build(rows[i : i + size], 0, block_size, mask_rate)

    def build(self, rows: np.ndarray, stage: int, block_size: int, mask_rate: float | None) -> Batch:
        """Return the batch of rows given as (epoch, row number), (B, 2); see `Objective.build`."""
        epochs, numbers = rows.T
        random = RandomRows(self.seed, stage, epochs, numbers)
        arrays = self.objective.build(numbers, random, block_size, mask_rate or 0.0)
        if self.bounds:
            arrays["cu_seq_lens_q"] = document_bounds(arrays["position_ids"])
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@lru_cache(maxsize=2)  # a batch may end an epoch and begin the next
def epoch_order(seed: int, stage: int, epoch: int, size: int) -> np.ndarray:
    """Return the numbers of all rows of an epoch in the order in which they are read."""
    return np.random.default_rng((seed, ORDER, stage, epoch)).permutation(size)


def validation_batches(recipe: Recipe, data: PreparedData, device: torch.device, *, bounds: bool) -> list[Batch]:
    """Return the held-out batches, which are the same each time, with the same masks for every recipe."""
    source = batch_source(recipe, data, "validation", VALIDATION_SEED, bounds=bounds)
    block_size, size = recipe.stages[-1].block_size, recipe.rows_per_pass(recipe.stages[-1], device)
    mask_rate = None if recipe.objective == "next_token" else VALIDATION_MASK_RATE
    return list(source.validation_batches(block_size, mask_rate=mask_rate, blocks=recipe.validation_blocks, size=size))


def batch_source(recipe: Recipe, data: PreparedData, split: str, seed: int, *, bounds: bool = False) -> BatchSource:
    """Return the batches of `train` or `validation`."""
    facts = vocabulary_facts(data.tokenizer)
    block_size = max(stage.block_size for stage in recipe.stages)
    packed = open_packed(data.tokens(split), len(data.tokenizer), facts.cls_id, block_size=block_size, what=split)
    masking = recipe.masking if split == "train" else "token"
    objective = make_objective(recipe.objective, packed, facts, masking=masking)
    return BatchSource(objective, seed=seed, bounds=bounds)
