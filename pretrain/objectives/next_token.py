"""The next token of every position, in packed rows: the Decoder's objective."""

from __future__ import annotations

import numpy as np

from ..data.packed import positions_since
from . import Arrays, Objective
from .masking import IGNORED
from .random_rows import RandomRows


class NextToken(Objective):
    """Blocks of the packed array, with positions that restart at every document; nothing is random."""

    def build(self, indices: np.ndarray, random: RandomRows, block_size: int, mask_rate: float) -> Arrays:
        """Return input_ids, position_ids (B, T); target_positions, labels (B * (T - 1),).

        The first token of a document is not predicted from the document before it: that label is IGNORED.
        """
        ids = self.data.blocks(indices, block_size)
        positions = positions_since(ids == self.data.cls_id)
        labels = np.where(positions[:, 1:] == 0, IGNORED, ids[:, 1:])
        targets = np.arange(len(ids))[:, None] * block_size + np.arange(block_size - 1)
        inputs = {"input_ids": ids, "position_ids": positions}
        return inputs | {"target_positions": targets.reshape(-1), "labels": labels.reshape(-1)}
