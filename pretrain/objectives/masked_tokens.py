"""Masked tokens in packed rows: the Encoder's objective (Devlin et al. 2018, section 3.1)."""

from __future__ import annotations

import numpy as np
import torch

from ..packing import PackedTokens, positions_within_documents
from ..tokenizer import VocabularyFacts
from .masking import mask_rows


class MaskedTokens:
    """Blocks of the packed array, with positions that restart at every document.

    Args:
        masking: `token`, `whole_word` or `span`.
    """

    def __init__(self, data: PackedTokens, facts: VocabularyFacts, masking: str):
        self.data, self.facts, self.masking = data, facts, masking

    def count(self, block_size: int) -> int:
        """Whole blocks."""
        return self.data.num_blocks(block_size)

    def build(
        self, indices: np.ndarray, generators: list[np.random.Generator], block_size: int, mask_rate: float
    ) -> dict[str, torch.Tensor]:
        """input_ids, position_ids (B, T); target_positions, labels (N,)."""
        ids = self.data.blocks(indices, block_size)
        positions = torch.from_numpy(positions_within_documents(ids, self.data.cls_id))
        return mask_rows(ids, mask_rate, self.masking, self.facts, generators) | {"position_ids": positions}
