"""Training objectives: each turns packed tokens into numbered rows with targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.packed import PackedTokens
from ..data.tokenizer import VocabularyFacts
from .random_rows import RandomRows

Arrays = dict[str, np.ndarray]


@dataclass
class Objective:
    """An objective on packed tokens; a row is a block of them unless `count` and `build` say otherwise.

    `masking` is `token`, `whole_word` or `span`.
    """

    data: PackedTokens
    facts: VocabularyFacts
    masking: str = "token"

    def count(self, block_size: int) -> int:
        """Return the number of rows in one epoch."""
        return self.data.num_blocks(block_size)

    def build(self, indices: np.ndarray, random: RandomRows, block_size: int, mask_rate: float) -> Arrays:
        """Return a batch of rows (B,).

        It has the model's inputs, and `target_positions` (N,) into the flattened rows with `labels` (N,). All random
        choices in row i come from row i of `random`.
        """
        raise NotImplementedError
