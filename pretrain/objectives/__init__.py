"""What a model is asked: each objective turns packed tokens into rows with targets, one file each."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from ..packing import PackedTokens
from ..tokenizer import VocabularyFacts
from .masked_tokens import MaskedTokens
from .next_token import NextToken
from .segment_pairs import SegmentPairs
from .span_corruption import SpanCorruption


class Objective(Protocol):
    """Rows are numbered; which are read when is not its business (see `batches.py`)."""

    def count(self, block_size: int) -> int:
        """Rows in one reading of the corpus."""

    def build(
        self, indices: np.ndarray, generators: list[np.random.Generator], block_size: int, mask_rate: float | None
    ) -> dict[str, torch.Tensor]:
        """A batch of rows (B,): model inputs, and `target_positions` (N,) into the flattened rows with `labels` (N,).

        All that is random about row i comes from `generators[i]`.
        """


def make_objective(name: str, data: PackedTokens, facts: VocabularyFacts, *, masking: str) -> Objective:
    """Args:
    name: recipe field `objective`.
    masking: recipe field `masking`; read where single tokens are masked.
    """
    if name == "mlm":
        return MaskedTokens(data, facts, masking)
    if name == "mlm_nsp":
        return SegmentPairs(data, facts, masking)
    if name == "next_token":
        return NextToken(data)
    return SpanCorruption(data, facts)
