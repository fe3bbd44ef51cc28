"""Spans removed from packed rows, which the decoder writes: T5's objective (Raffel et al. 2019, section 3.1.4).

the encoder reads    thank you [SPAN0] me to your party [SPAN1] week . [SEP]
the decoder writes   [SPAN0] for inviting [SPAN1] last [SEP]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..data.packed import PackedTokens, positions_within_documents
from ..data.tokenizer import VocabularyFacts
from .masking import IGNORED

MEAN_SPAN = 3.0  # tokens (Raffel et al. 2019, section 3.3.4)


@dataclass
class CorruptedRow:
    """One row of documents: the inputs of encoder and decoder with their positions, and the labels."""

    read: np.ndarray
    read_positions: np.ndarray
    written: np.ndarray
    written_positions: np.ndarray
    labels: np.ndarray


class SpanCorruption:
    """Blocks of the packed array, each document corrupted separately.

    The n-th document in the decoder's row attends to the n-th document in the encoder's row.
    """

    def __init__(self, data: PackedTokens, facts: VocabularyFacts):
        self.data, self.facts = data, facts

    def count(self, block_size: int) -> int:
        """Return the number of whole blocks."""
        return self.data.num_blocks(block_size)

    def build(
        self, indices: np.ndarray, generators: list[np.random.Generator], block_size: int, mask_rate: float
    ) -> dict[str, torch.Tensor]:
        """Return encoder inputs (B, S), decoder inputs (B, T), and targets (N,).

        They are input_ids, position_ids; decoder_input_ids, decoder_position_ids; target_positions, labels. S and T are
        the lengths of the longest rows. Padding is a document of its own in the encoder; in the decoder it extends the
        last document and has no labels.
        """
        blocks = self.data.blocks(indices, block_size)
        rows = [self._corrupt(ids, mask_rate, generator) for ids, generator in zip(blocks, generators, strict=True)]
        pad = self.facts.pad_id
        labels = _stack([row.labels for row in rows], IGNORED).reshape(-1)
        targets = np.flatnonzero(labels != IGNORED)
        arrays = {
            "input_ids": _stack([row.read for row in rows], pad),
            "position_ids": _stack_positions([row.read_positions for row in rows], restart=True),
            "decoder_input_ids": _stack([row.written for row in rows], pad),
            "decoder_position_ids": _stack_positions([row.written_positions for row in rows], restart=False),
            "target_positions": targets,
            "labels": labels[targets],
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _corrupt(self, ids: np.ndarray, mask_rate: float, generator: np.random.Generator) -> CorruptedRow:
        """Corrupt the ids of a packed row (T,); [CLS] only marks where a document starts and is removed."""
        facts = self.facts
        document = np.cumsum(positions_within_documents(ids[None], facts.cls_id)[0] == 0)
        noise = np.zeros(len(ids), dtype=bool)
        ordinary = np.flatnonzero(~facts.is_special[ids])
        noise[ordinary] = random_spans(len(ordinary), mask_rate, len(facts.span_ids), generator)
        is_text = ids != facts.cls_id
        ids, document, noise = ids[is_text], document[is_text], noise[is_text]

        continues = np.zeros(len(ids), dtype=bool)
        continues[1:] = noise[1:] & noise[:-1] & (document[1:] == document[:-1])
        begins = noise & ~continues
        read, written = [], []
        for number in np.unique(document):
            inside = document == number
            sentinels = facts.span_ids[np.cumsum(begins[inside]) - 1]
            corrupted = np.where(begins[inside], sentinels, ids[inside])[~continues[inside]]
            read.append(corrupted)
            written.append(_answer(ids[inside], noise[inside], begins[inside], sentinels))
        return self._row(read, written)

    def _row(self, read: list[np.ndarray], written: list[np.ndarray]) -> CorruptedRow:
        """Join the documents of a row; a document without a span has an empty target sequence without labels."""
        start, end = [self.facts.cls_id], [self.facts.sep_id]
        answers = [np.concatenate((answer, end)) if len(answer) else np.array([IGNORED]) for answer in written]
        return CorruptedRow(
            read=np.concatenate(read),
            read_positions=np.concatenate([np.arange(len(part)) for part in read]),
            written=np.concatenate([np.concatenate((start, answer)) for answer in written]),
            written_positions=np.concatenate([np.arange(len(answer) + 1) for answer in written]),
            labels=np.concatenate(answers),
        )


def random_spans(length: int, rate: float, most_spans: int, generator: np.random.Generator) -> np.ndarray:
    """Return (length,) bool with a fixed number of noise tokens in a fixed number of spans of random lengths.

    Kept and noise spans alternate (T5's `random_spans_noise_mask`).
    """
    noisy = round(length * rate)
    spans = min(max(1, round(noisy / MEAN_SPAN)), length - noisy, most_spans)
    if noisy < 1 or spans < 1:
        return np.zeros(length, dtype=bool)
    lengths = np.empty(2 * spans, dtype=np.int64)
    lengths[0::2] = _random_parts(length - noisy, spans, generator)
    lengths[1::2] = _random_parts(noisy, spans, generator)
    return np.repeat(np.tile([False, True], spans), lengths)


def _random_parts(total: int, parts: int, generator: np.random.Generator) -> np.ndarray:
    """Return (parts,) positive lengths that add up to `total`, with every cut equally likely."""
    cuts = np.sort(generator.choice(total - 1, size=parts - 1, replace=False)) + 1
    return np.diff(np.concatenate(([0], cuts, [total])))


def _answer(ids: np.ndarray, noise: np.ndarray, begins: np.ndarray, sentinels: np.ndarray) -> np.ndarray:
    """Return each span after its sentinel."""
    places = np.flatnonzero(noise)
    starts = np.flatnonzero(begins[places])
    return np.insert(ids[places], starts, sentinels[places][starts])


def _stack(rows: list[np.ndarray], fill: int) -> np.ndarray:
    stacked = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
    for target, row in zip(stacked, rows, strict=True):
        target[: len(row)] = row
    return stacked


def _stack_positions(rows: list[np.ndarray], *, restart: bool) -> np.ndarray:
    """Stack positions; those of the padding start at 0, or continue after the last token."""
    longest = max(map(len, rows))
    rests = [np.arange(longest - len(row)) + (0 if restart else row[-1] + 1) for row in rows]
    return np.stack([np.concatenate((row, rest)) for row, rest in zip(rows, rests, strict=True)])
