"""A batch is a pure function of (seed, step): no loader state, so a resume replays nothing.

The order of an epoch is a permutation seeded by (seed, stage, epoch); what happens to a row is drawn from a generator
seeded by (seed, stage, epoch, row number). Neither the number of processes nor of micro-batches enters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from .masking import IGNORED, choose_targets, group_tokens, hide
from .packing import PackedTokens, positions_within_documents
from .schedule import StagePlan
from .tokenizer import VocabularyFacts

ORDER, ROWS = 0, 1  # what a generator is for: the two never share a seed


@dataclass(frozen=True)
class Rows:
    """Rows of a batch before they are masked: arrays (B, T), and `extra` model inputs of the objective."""

    ids: np.ndarray
    inputs: dict[str, np.ndarray] = field(default_factory=dict)


def packed_rows(data: PackedTokens, indices: np.ndarray, block_size: int) -> Rows:
    """Blocks of the packed array, with positions that restart at every document."""
    ids = data.blocks(indices, block_size)
    return Rows(ids, {"position_ids": positions_within_documents(ids, data.cls_id)})


class BatchSource:
    """The batches of one corpus.

    Args:
        seed: of the run.
        masking: `token`, `whole_word` or `span`.
        facts: of the vocabulary.
        next_sentence: build segment pairs instead of packed rows.
    """

    def __init__(
        self, data: PackedTokens, *, seed: int, masking: str, facts: VocabularyFacts, next_sentence: bool = False
    ):
        self.data, self.seed, self.masking, self.facts = data, seed, masking, facts
        self.pairs = SegmentPairs(data, facts) if next_sentence else None
        self._order = lru_cache(maxsize=2)(self._permutation)

    def rows_per_epoch(self, block_size: int) -> int:
        """How many rows one reading of the corpus gives."""
        return self.pairs.count(block_size) if self.pairs else self.data.num_blocks(block_size)

    def rows_of_step(self, plan: StagePlan, step: int) -> list[tuple[int, int]]:
        """(epoch, row number) of every row of a step, over all processes."""
        first = (step - plan.first) * plan.stage.batch_size
        size = self.rows_per_epoch(plan.stage.block_size)
        rows = []
        for n in range(first, first + plan.stage.batch_size):
            epoch, offset = divmod(n, size)
            rows.append((epoch, int(self._order(plan.index, epoch, size)[offset])))
        return rows

    def micro_batches(
        self, plan: StagePlan, step: int, *, rank: int, world: int, size: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        """This process's rows of a step (every `world`-th, from `rank`), `size` at a time."""
        rows = self.rows_of_step(plan, step)[rank::world]
        for i in range(0, len(rows), size):
            yield self.build(rows[i : i + size], plan.index, plan.stage.block_size, plan.stage.mask_rate)

    def validation_batches(
        self, block_size: int, *, mask_rate: float, blocks: int, size: int
    ) -> Iterator[dict[str, torch.Tensor]]:
        """The first `blocks` rows in order; masks depend on the seed and the row alone."""
        rows = [(0, i) for i in range(min(blocks, self.rows_per_epoch(block_size)))]
        for i in range(0, len(rows), size):
            yield self.build(rows[i : i + size], 0, block_size, mask_rate)

    def build(
        self, rows: list[tuple[int, int]], stage: int, block_size: int, mask_rate: float
    ) -> dict[str, torch.Tensor]:
        """Model inputs: input_ids, position_ids (B, T); target_positions (N,) into the flattened rows, labels (N,)."""
        generators = [np.random.default_rng((self.seed, ROWS, stage, epoch, row)) for epoch, row in rows]
        indices = np.array([row for _, row in rows])
        if self.pairs:
            batch = self.pairs.rows(indices, block_size, generators)
        else:
            batch = packed_rows(self.data, indices, block_size)
        count = round(mask_rate * block_size)
        masked = [self._mask(ids, count, generator) for ids, generator in zip(batch.ids, generators, strict=True)]
        offsets = np.arange(len(rows))[:, None] * block_size
        arrays = {
            "input_ids": np.stack([row[0] for row in masked]),
            "target_positions": (np.stack([row[1] for row in masked]) + offsets).reshape(-1),
            "labels": np.stack([row[2] for row in masked]).reshape(-1),
            **batch.inputs,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _mask(
        self, ids: np.ndarray, count: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One row (T,): what the model sees, the positions it answers for (count,), the answers (count,)."""
        groups = group_tokens(self.facts.starts_word[ids], self.masking, generator)
        positions, valid = choose_targets(groups, ~self.facts.is_special[ids], count, generator)
        labels = np.where(valid, ids[positions], IGNORED)
        seen = ids.copy()
        hidden = hide(ids[positions], self.facts.mask_id, self.facts.ordinary_ids, generator)
        seen[positions] = np.where(valid, hidden, ids[positions])
        return seen, positions, labels

    def _permutation(self, stage: int, epoch: int, size: int) -> np.ndarray:
        return np.random.default_rng((self.seed, ORDER, stage, epoch)).permutation(size)


class SegmentPairs:
    """BERT's next-sentence task on packed tokens: [CLS] A [SEP] B [SEP], where B follows A in its document half of the
    time and is a segment of another document otherwise (Devlin et al. 2018, section 3.1).

    A document is cut into segments of equal length, half a row each; a segment that is the last of its document
    is no A.
    """

    def __init__(self, data: PackedTokens, facts: VocabularyFacts):
        self.data, self.facts = data, facts
        starts = data.document_starts()
        self.starts = starts + 1  # behind [CLS]
        self.lengths = np.diff(np.append(starts, len(data.tokens))) - 2  # without [CLS] and [SEP]
        self._segments = lru_cache(maxsize=4)(self._cut)

    def count(self, block_size: int) -> int:
        """Segments that can stand as A."""
        return len(self._segments(block_size)[0])

    def rows(self, indices: np.ndarray, block_size: int, generators: list[np.random.Generator]) -> Rows:
        """Rows (B, T) padded to `block_size`, with attention_mask, token_type_ids and next_sentence_label."""
        firsts, documents = self._segments(block_size)
        half = (block_size - 3) // 2
        ids = np.full((len(indices), block_size), self.facts.pad_id, dtype=np.int64)
        token_types, attention = np.zeros_like(ids), np.zeros_like(ids)
        labels = np.zeros(len(indices), dtype=np.int64)
        for row, (index, generator) in enumerate(zip(indices, generators, strict=True)):
            start_b = firsts[index] + half
            document_b = documents[index]
            if generator.random() < 0.5:
                labels[row] = 1
                start_b, document_b = self._random_segment(documents[index], half, generator)
            a = self.data.tokens[firsts[index] : firsts[index] + half]
            end_b = min(start_b + half, self.starts[document_b] + self.lengths[document_b])
            b = self.data.tokens[start_b:end_b]
            pair = np.concatenate(([self.facts.cls_id], a, [self.facts.sep_id], b, [self.facts.sep_id]))
            ids[row, : len(pair)] = pair
            attention[row, : len(pair)] = 1
            token_types[row, len(a) + 2 : len(pair)] = 1
        inputs = {"attention_mask": attention, "token_type_ids": token_types, "next_sentence_label": labels}
        return Rows(ids, inputs)

    def _random_segment(self, not_document: int, half: int, generator: np.random.Generator) -> tuple[int, int]:
        """A segment start of another document, and that document."""
        other = int(generator.integers(len(self.starts) - 1))
        other += other >= not_document
        segments = max(1, -(-int(self.lengths[other]) // half))
        return int(self.starts[other]) + half * int(generator.integers(segments)), other

    def _cut(self, block_size: int) -> tuple[np.ndarray, np.ndarray]:
        half = (block_size - 3) // 2
        followed = np.maximum(self.lengths - 1, 0) // half  # segments with at least one token behind them
        documents = np.repeat(np.arange(len(self.starts)), followed)
        number = np.arange(len(documents)) - np.repeat(np.cumsum(followed) - followed, followed)
        return self.starts[documents] + half * number, documents
