"""Masked tokens and next sentences on segment pairs: BERT's objective (Devlin et al. 2018, section 3.1)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from ..data.packed import PackedTokens
from ..data.tokenizer import VocabularyFacts
from . import Objective
from .masking import mask_rows


class SegmentPairs(Objective):
    """Rows [CLS] A [SEP] B [SEP]: half of the time B follows A in its document, otherwise it is from another one.

    Documents are cut into segments of equal length, half a row each; the last segment of a document is never A.
    """

    def __init__(self, data: PackedTokens, facts: VocabularyFacts, masking: str):
        super().__init__(data, facts, masking)
        starts = data.document_starts()
        self.starts = starts + 1  # after [CLS]
        self.lengths = np.diff(np.append(starts, len(data.tokens))) - 2  # without [CLS] and [SEP]
        self._segments = lru_cache(maxsize=4)(self._cut)

    def count(self, block_size: int) -> int:
        """Return the number of segments that can be A."""
        return len(self._segments(block_size)[0])

    def build(
        self, indices: np.ndarray, generators: list[np.random.Generator], block_size: int, mask_rate: float
    ) -> dict[str, torch.Tensor]:
        """Return rows padded to `block_size`.

        They are input_ids, attention_mask, token_type_ids (B, T); next_sentence_label (B,), 0 if B follows A;
        target_positions, labels (N,).
        """
        ids = np.full((len(indices), block_size), self.facts.pad_id, dtype=np.int64)
        token_types, attention = np.zeros_like(ids), np.zeros_like(ids)
        is_random = np.zeros(len(indices), dtype=np.int64)
        for row, (index, generator) in enumerate(zip(indices, generators, strict=True)):
            is_random[row] = generator.random() < 0.5
            a, b = self._pair(index, block_size, generator, is_random=bool(is_random[row]))
            pair = np.concatenate(([self.facts.cls_id], a, [self.facts.sep_id], b, [self.facts.sep_id]))
            ids[row, : len(pair)] = pair
            attention[row, : len(pair)] = 1
            token_types[row, len(a) + 2 : len(pair)] = 1
        inputs = {"attention_mask": attention, "token_type_ids": token_types, "next_sentence_label": is_random}
        masked = mask_rows(ids, mask_rate, self.masking, self.facts, generators)
        return masked | {name: torch.from_numpy(array) for name, array in inputs.items()}

    def _pair(
        self, index: int, block_size: int, generator: np.random.Generator, *, is_random: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids of A, and of a B that follows it or is random."""
        firsts, documents = self._segments(block_size)
        half = (block_size - 3) // 2
        start_b, document_b = firsts[index] + half, documents[index]
        if is_random:
            start_b, document_b = self._random_segment(documents[index], half, generator)
        end_b = min(start_b + half, self.starts[document_b] + self.lengths[document_b])
        return self.data.tokens[firsts[index] : firsts[index] + half], self.data.tokens[start_b:end_b]

    def _random_segment(self, not_document: int, half: int, generator: np.random.Generator) -> tuple[int, int]:
        """Return the start of a segment of another document, and that document."""
        other = int(generator.integers(len(self.starts) - 1))
        other += other >= not_document
        segments = max(1, -(-int(self.lengths[other]) // half))
        return int(self.starts[other]) + half * int(generator.integers(segments)), other

    def _cut(self, block_size: int) -> tuple[np.ndarray, np.ndarray]:
        half = (block_size - 3) // 2
        followed = np.maximum(self.lengths - 1, 0) // half  # segments with at least one token after them
        documents = np.repeat(np.arange(len(self.starts)), followed)
        number = np.arange(len(documents)) - np.repeat(np.cumsum(followed) - followed, followed)
        return self.starts[documents] + half * number, documents
