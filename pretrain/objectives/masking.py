"""Masked tokens in packed rows: the Encoder's objective (Devlin et al. 2018, section 3.1)."""

from __future__ import annotations

import numpy as np

from ..data.packed import positions_since
from ..data.tokenizer import VocabularyFacts
from . import Arrays, Objective
from .random_rows import RandomRows

IGNORED = -100  # a target without loss
REPLACED_BY_MASK, REPLACED_BY_RANDOM = 0.8, 0.1  # the rest is unchanged (Devlin et al. 2018, section 3.1)
# Words in a span: geometric with p 0.2 over 1..10, mean 3.8 (Joshi et al. 2019, SpanBERT, section 3.1).
SPAN_PROBABILITIES = 0.8 ** np.arange(1, 11) / (0.8 ** np.arange(1, 11)).sum()


class MaskedTokens(Objective):
    """Blocks of the packed array, with positions that restart at every document."""

    def build(self, indices: np.ndarray, random: RandomRows, block_size: int, mask_rate: float) -> Arrays:
        """Return input_ids, position_ids (B, T); target_positions, labels (N,)."""
        ids = self.data.blocks(indices, block_size)
        positions = {"position_ids": positions_since(ids == self.data.cls_id)}
        return mask_rows(ids, mask_rate, self.masking, self.facts, random) | positions


def mask_rows(ids: np.ndarray, mask_rate: float, scheme: str, facts: VocabularyFacts, random: RandomRows) -> Arrays:
    """Mask the same number of tokens in every row, so that shapes are static.

    Returns:
        input_ids (B, T) with masks; target_positions (N,) into the flattened rows, rising; labels (N,) with the
        original ids, IGNORED where a row had too few tokens to mask.
    """
    counts = np.full((len(ids), 1), max(1, round(mask_rate * ids.shape[1])))
    groups, maskable = group_tokens(facts.starts_word[ids], scheme, random), ~facts.is_special[ids]
    targets = np.flatnonzero(random.choose("targets", groups, maskable, counts))
    is_valid, originals, seen = maskable.reshape(-1)[targets], ids.reshape(-1)[targets], ids.reshape(-1).copy()
    hidden = hide(originals.reshape(len(ids), -1), facts.mask_id, facts.ordinary_ids, random).reshape(-1)
    seen[targets] = np.where(is_valid, hidden, originals)
    labels = np.where(is_valid, originals, IGNORED)
    return {"input_ids": seen.reshape(ids.shape), "target_positions": targets, "labels": labels}


def group_tokens(starts_word: np.ndarray, scheme: str, random: RandomRows) -> np.ndarray:
    """Return numbers of the units masked together, (B, T) rising; `starts_word` (B, T) is False inside words."""
    length = starts_word.shape[1]
    if scheme == "token":
        return np.broadcast_to(np.arange(length), starts_word.shape)
    words = np.cumsum(starts_word, axis=1) - starts_word[:, :1]
    if scheme == "whole_word":
        return words
    lengths = 1 + np.searchsorted(SPAN_PROBABILITIES.cumsum()[:-1], random.uniform("span lengths", length), "right")
    starts_span = np.zeros((len(words), length + 1), dtype=bool)  # by word
    np.put_along_axis(starts_span, np.minimum(lengths.cumsum(axis=1), length), True, axis=1)
    return np.take_along_axis(starts_span.cumsum(axis=1), words, axis=1)


def hide(ids: np.ndarray, mask_id: int, ordinary_ids: np.ndarray, random: RandomRows) -> np.ndarray:
    """Replace 80 % of the chosen tokens (B, N) by [MASK] and 10 % by a random one of `ordinary_ids`; 10 % stay."""
    draw = random.uniform("replacements", ids.shape[1])
    random_ids = ordinary_ids[random.integers("random tokens", ids.shape[1], len(ordinary_ids))]
    changed = np.where(draw < REPLACED_BY_MASK, mask_id, random_ids)
    return np.where(draw < REPLACED_BY_MASK + REPLACED_BY_RANDOM, changed, ids)
