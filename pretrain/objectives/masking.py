"""Which tokens of a row are hidden, and what stands in their place. Pure functions with an explicit generator."""

from __future__ import annotations

import numpy as np
import torch

from ..tokenizer import VocabularyFacts

IGNORED = -100  # a target that the loss does not read
REPLACED_BY_MASK, REPLACED_BY_RANDOM = 0.8, 0.1  # the rest stays as it is (Devlin et al. 2018, section 3.1)
# Words in a span: geometric with p 0.2 over 1..10, mean 3.8 (Joshi et al. 2019, SpanBERT, section 3.1).
SPAN_LENGTHS = np.arange(1, 11)
SPAN_PROBABILITIES = 0.8**SPAN_LENGTHS / (0.8**SPAN_LENGTHS).sum()


def mask_rows(
    ids: np.ndarray, mask_rate: float, scheme: str, facts: VocabularyFacts, generators: list[np.random.Generator]
) -> dict[str, torch.Tensor]:
    """Hides the same number of tokens in every row, so that shapes are static.

    Args:
        ids: (B, T).
        scheme: `token`, `whole_word` or `span`.
        generators: one a row.

    Returns:
        input_ids (B, T): what the model sees; target_positions (N,) into the flattened rows; labels (N,): the answers,
        IGNORED where a row had too few tokens to hide.
    """
    count = round(mask_rate * ids.shape[1])
    masked = [_mask_row(row, count, scheme, facts, generator) for row, generator in zip(ids, generators, strict=True)]
    offsets = np.arange(len(ids))[:, None] * ids.shape[1]
    arrays = {
        "input_ids": np.stack([row[0] for row in masked]),
        "target_positions": (np.stack([row[1] for row in masked]) + offsets).reshape(-1),
        "labels": np.stack([row[2] for row in masked]).reshape(-1),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _mask_row(
    ids: np.ndarray, count: int, scheme: str, facts: VocabularyFacts, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row (T,): what the model sees, the positions it answers for (count,), the answers (count,)."""
    groups = group_tokens(facts.starts_word[ids], scheme, generator)
    positions, valid = choose_targets(groups, ~facts.is_special[ids], count, generator)
    labels = np.where(valid, ids[positions], IGNORED)
    seen = ids.copy()
    hidden = hide(ids[positions], facts.mask_id, facts.ordinary_ids, generator)
    seen[positions] = np.where(valid, hidden, ids[positions])
    return seen, positions, labels


def group_tokens(starts_word: np.ndarray, scheme: str, generator: np.random.Generator) -> np.ndarray:
    """Numbers the units that are hidden together.

    Args:
        starts_word: (T,) bool, False for the later pieces of a word.
        scheme: `token`, `whole_word` or `span`.

    Returns:
        (T,) int: tokens of one unit share a number; numbers rise from left to right.
    """
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
    """Takes whole groups in random order until `count` tokens are hidden; the last group is cut to fit.

    Args:
        groups: (T,) from `group_tokens`.
        maskable: (T,) bool, False for special tokens.

    Returns:
        (count,) positions in rising order and (count,) bool: False where the row had too few maskable tokens.
    """
    scores = generator.random(groups[-1] + 1)[groups]
    scores[~maskable] = np.inf
    chosen = np.sort(np.argsort(scores, kind="stable")[:count])
    return chosen, maskable[chosen]


def hide(ids: np.ndarray, mask_id: int, ordinary_ids: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What stands in place of the chosen tokens: 80 % [MASK], 10 % a random ordinary token, 10 % themselves.

    Args:
        ids: (N,) the true tokens; ordinary_ids: the ids that a random replacement may have.
    """
    draw = generator.random(len(ids))
    random_ids = ordinary_ids[generator.integers(len(ordinary_ids), size=len(ids))]
    hidden = np.where(draw < REPLACED_BY_MASK, mask_id, ids)
    return np.where((draw >= REPLACED_BY_MASK) & (draw < REPLACED_BY_MASK + REPLACED_BY_RANDOM), random_ids, hidden)
