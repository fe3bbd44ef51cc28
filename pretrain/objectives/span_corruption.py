"""Spans removed from packed rows, which the decoder writes: T5's objective (Raffel et al. 2019, section 3.1.4).

the encoder reads    thank you [SPAN0] me to your party [SPAN1] week . [SEP]
the decoder writes   [SPAN0] for inviting [SPAN1] last [SEP]
"""

from __future__ import annotations

import numpy as np
import torch

from ..data.packed import positions_within_documents
from . import Objective
from .masking import IGNORED

MEAN_SPAN = 3.0  # tokens (Raffel et al. 2019, section 3.3.4)


class SpanCorruption(Objective):
    """Blocks of the packed array, each document corrupted separately.

    The n-th document in the decoder's row attends to the n-th document in the encoder's row.
    """

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
        read, positions, written, labels = zip(*rows, strict=True)
        decoder_ids, labels = _stack(written, self.facts.pad_id), _stack(labels, IGNORED).reshape(-1)
        targets = np.flatnonzero(labels != IGNORED)
        longest = max(map(len, read))
        arrays = {
            "input_ids": _stack(read, self.facts.pad_id),
            "position_ids": np.stack([np.append(row, np.arange(longest - len(row))) for row in positions]),
            "decoder_input_ids": decoder_ids,
            "decoder_position_ids": positions_within_documents(decoder_ids, self.facts.cls_id),
            "target_positions": targets,
            "labels": labels[targets],
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _corrupt(self, ids: np.ndarray, mask_rate: float, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Corrupt a packed row (T,); return the encoder's ids and positions, the decoder's ids, and the labels.

        [CLS] only marks where a document starts: the encoder does not read it, and the decoder starts with it. A
        document without a span has an empty answer without labels.
        """
        facts = self.facts
        is_text, document = ids != facts.cls_id, np.cumsum(ids == facts.cls_id)
        noise = np.zeros(len(ids), dtype=bool)
        ordinary = np.flatnonzero(~facts.is_special[ids])
        noise[ordinary] = random_spans(len(ordinary), mask_rate, len(facts.span_ids), generator)
        ids, document, noise = ids[is_text], document[is_text], noise[is_text]

        read, positions, written, labels = [], [], [], []
        for inside in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(document)) + 1):
            text, hidden = ids[inside], noise[inside]
            begins = hidden & ~np.append(False, hidden[:-1])
            sentinels = facts.span_ids[np.cumsum(begins) - 1]
            read.append(np.where(begins, sentinels, text)[begins | ~hidden])
            positions.append(np.arange(len(read[-1])))
            starts = np.flatnonzero(begins[hidden])
            answer = np.insert(text[hidden], starts, sentinels[begins])
            written.append(np.append(facts.cls_id, answer))
            labels.append(np.append(answer, facts.sep_id if len(answer) else IGNORED))
        return tuple(map(np.concatenate, (read, positions, written, labels)))


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


def _stack(rows: tuple[np.ndarray, ...], fill: int) -> np.ndarray:
    longest = max(map(len, rows))
    return np.stack([np.append(row, np.full(longest - len(row), fill)) for row in rows])
