"""Masked tokens and next sentences on segment pairs: BERT's objective (Devlin et al. 2018, section 3.1)."""

from __future__ import annotations

import numpy as np

from ..data.packed import PackedTokens
from ..data.tokenizer import VocabularyFacts
from . import Arrays, Objective
from .masking import mask_rows
from .random_rows import RandomRows


class SegmentPairs(Objective):
    """Rows [CLS] A [SEP] B [SEP]: half of the time B follows A in its document, otherwise it is from another one.

    Documents are cut into segments of equal length, half a row each; the last segment of a document is never A.
    """

    def __init__(self, data: PackedTokens, facts: VocabularyFacts, masking: str):
        super().__init__(data, facts, masking)
        starts = data.document_starts()
        self.starts = starts + 1  # after [CLS]
        self.lengths = np.diff(np.append(starts, len(data.tokens))) - 2  # without [CLS] and [SEP]
        self._cuts: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def count(self, block_size: int) -> int:
        """Return the number of segments that can be A."""
        return len(self._segments(block_size)[0])

    def build(self, indices: np.ndarray, random: RandomRows, block_size: int, mask_rate: float) -> Arrays:
        """Return rows padded to `block_size`.

        They are input_ids, attention_mask, token_type_ids (B, T); next_sentence_label (B,), 0 if B follows A;
        target_positions, labels (N,).
        """
        firsts, documents = (array[indices] for array in self._segments(block_size))
        half = (block_size - 3) // 2
        is_random = random.uniform("is random", 1)[:, 0] < 0.5
        others, start_others = self._other_segments(documents, half, random)
        start_b = np.where(is_random, start_others, firsts + half)
        document_b = np.where(is_random, others, documents)
        length_b = np.minimum(self.starts[document_b] + self.lengths[document_b] - start_b, half)[:, None]

        ids = np.full((len(indices), block_size), self.facts.pad_id, dtype=np.int64)
        ids[:, 0], ids[:, half + 1] = self.facts.cls_id, self.facts.sep_id
        place = np.arange(half)
        ids[:, 1 : half + 1] = self.data.tokens[firsts[:, None] + place]
        is_b = place < length_b
        ids[:, half + 2 : 2 * half + 2][is_b] = self.data.tokens[(start_b[:, None] + place)[is_b]]
        end = half + 2 + length_b
        np.put_along_axis(ids, end, self.facts.sep_id, axis=1)
        column = np.arange(block_size)
        attention, labels = (column <= end).astype(np.int64), is_random.astype(np.int64)
        inputs = {"attention_mask": attention, "token_type_ids": attention * (column >= half + 2)}
        masked = mask_rows(ids, mask_rate, self.masking, self.facts, random)
        return masked | inputs | {"next_sentence_label": labels}

    def _other_segments(self, not_documents: np.ndarray, half: int, random: RandomRows) -> tuple[np.ndarray, ...]:
        """Return random documents (B,) that are not the given ones, and the start of a random segment of each."""
        others = random.integers("document", 1, len(self.starts) - 1)[:, 0]
        others += others >= not_documents
        segments = np.maximum(-(-self.lengths[others] // half), 1)
        return others, self.starts[others] + half * random.integers("segment", 1, segments[:, None])[:, 0]

    def _segments(self, block_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the start and the document of every segment that can be A."""
        if block_size not in self._cuts:
            half = (block_size - 3) // 2
            followed = np.maximum(self.lengths - 1, 0) // half  # segments with at least one token after them
            documents = np.repeat(np.arange(len(self.starts)), followed)
            number = np.arange(len(documents)) - np.repeat(np.cumsum(followed) - followed, followed)
            self._cuts[block_size] = self.starts[documents] + half * number, documents
        return self._cuts[block_size]
