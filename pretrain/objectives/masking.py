"""Masked tokens in packed rows: the Encoder's objective (Devlin et al. 2018, section 3.1)."""

from __future__ import annotations

import numpy as np
import torch

from ..data.packed import positions_within_documents
from ..data.tokenizer import VocabularyFacts
from . import Objective

IGNORED = -100  # a target without loss
REPLACED_BY_MASK, REPLACED_BY_RANDOM = 0.8, 0.1  # the rest is unchanged (Devlin et al. 2018, section 3.1)
# Words in a span: geometric with p 0.2 over 1..10, mean 3.8 (Joshi et al. 2019, SpanBERT, section 3.1).
SPAN_LENGTHS = np.arange(1, 11)
SPAN_PROBABILITIES = 0.8**SPAN_LENGTHS / (0.8**SPAN_LENGTHS).sum()


class MaskedTokens(Objective):
    """Blocks of the packed array, with positions that restart at every document."""

    def build(
        self, indices: np.ndarray, generators: list[np.random.Generator], block_size: int, mask_rate: float
    ) -> dict[str, torch.Tensor]:
        """Return input_ids, position_ids (B, T); target_positions, labels (N,)."""
        ids = self.data.blocks(indices, block_size)
        positions = torch.from_numpy(positions_within_documents(ids, self.data.cls_id))
        return mask_rows(ids, mask_rate, self.masking, self.facts, generators) | {"position_ids": positions}


def mask_rows(
    ids: np.ndarray, mask_rate: float, scheme: str, facts: VocabularyFacts, generators: list[np.random.Generator]
) -> dict[str, torch.Tensor]:
    """Mask the same number of tokens in every row, so that shapes are static.

    Returns:
        input_ids (B, T) with masks; target_positions (N,) into the flattened rows; labels (N,) with the original ids,
        IGNORED where a row had too few tokens to mask.
    """
    count = round(mask_rate * ids.shape[1])
    masked = [_mask_row(row, count, scheme, facts, generator) for row, generator in zip(ids, generators, strict=True)]
    seen, positions, labels = map(np.stack, zip(*masked, strict=True))
    positions += np.arange(len(ids))[:, None] * ids.shape[1]
    arrays = {"input_ids": seen, "target_positions": positions.reshape(-1), "labels": labels.reshape(-1)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _mask_row(
    ids: np.ndarray, count: int, scheme: str, facts: VocabularyFacts, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the masked row (T,), its target positions (count,) and their labels (count,)."""
    groups = group_tokens(facts.starts_word[ids], scheme, generator)
    positions, valid = choose_targets(groups, ~facts.is_special[ids], count, generator)
    labels = np.where(valid, ids[positions], IGNORED)
    seen = ids.copy()
    hidden = hide(ids[positions], facts.mask_id, facts.ordinary_ids, generator)
    seen[positions] = np.where(valid, hidden, ids[positions])
    return seen, positions, labels


def group_tokens(starts_word: np.ndarray, scheme: str, generator: np.random.Generator) -> np.ndarray:
    """Return numbers of the units masked together, (T,) rising; `starts_word` (T,) is False inside words."""
    if scheme == "token":
        return np.arange(len(starts_word))
    words = np.cumsum(starts_word) - starts_word[0]
    if scheme == "whole_word":
        return words
    lengths = generator.choice(SPAN_LENGTHS, size=len(starts_word), p=SPAN_PROBABILITIES)
    return np.searchsorted(np.cumsum(lengths), words, side="right")


def choose_targets(
    groups: np.ndarray, maskable: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Take whole groups in random order until `count` tokens are masked; the last group is cut to fit.

    Returns:
        Positions (count,) in rising order, and (count,) bool, False where the row had too few maskable tokens.
    """
    scores = generator.random(groups[-1] + 1)[groups]
    scores[~maskable] = np.inf
    chosen = np.sort(np.argsort(scores, kind="stable")[:count])
    return chosen, maskable[chosen]


def hide(ids: np.ndarray, mask_id: int, ordinary_ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Replace 80 % of the chosen tokens (N,) by [MASK] and 10 % by a random one of `ordinary_ids`; 10 % stay."""
    draw = generator.random(len(ids))
    random_ids = ordinary_ids[generator.integers(len(ordinary_ids), size=len(ids))]
    hidden = np.where(draw < REPLACED_BY_MASK, mask_id, ids)
    return np.where((draw >= REPLACED_BY_MASK) & (draw < REPLACED_BY_MASK + REPLACED_BY_RANDOM), random_ids, hidden)
