"""Spans removed from packed rows, which the decoder writes: T5's objective (Raffel et al. 2019, section 3.1.4).

the encoder reads    thank you [SPAN0] me to your party [SPAN1] week . [SEP]
the decoder writes   [SPAN0] for inviting [SPAN1] last [SEP]
"""

from __future__ import annotations

import numpy as np

from ..data.packed import positions_since
from . import Arrays, Objective
from .masking import IGNORED
from .random_rows import RandomRows

MEAN_SPAN = 3.0  # tokens (Raffel et al. 2019, section 3.3.4)


class SpanCorruption(Objective):
    """Blocks of the packed array, each document corrupted separately.

    The n-th document in the decoder's row attends to the n-th document in the encoder's row. [CLS] only marks where a
    document starts: the encoder does not read it, and the decoder starts with it. A document without a span has an
    empty answer without labels.
    """

    def build(self, indices: np.ndarray, random: RandomRows, block_size: int, mask_rate: float) -> Arrays:
        """Return encoder inputs (B, S), decoder inputs (B, T), and targets (N,).

        They are input_ids, position_ids; decoder_input_ids, decoder_position_ids; target_positions, labels. S and T are
        the lengths of the longest rows. Padding is a document of its own in the encoder; in the decoder it extends the
        last document and has no labels.
        """
        facts, blocks = self.facts, self.data.blocks(indices, block_size)
        ordinary, noise = ~facts.is_special[blocks], np.zeros(blocks.shape, dtype=bool)
        noise[ordinary] = random_spans(ordinary.sum(axis=1), mask_rate, len(facts.span_ids), random)
        is_text = blocks != facts.cls_id
        starts = ~is_text | (np.arange(block_size) == 0)
        # the text of all rows as one array (M,): token ids, whether they are noise, their documents and rows
        ids, noise, documents = blocks[is_text], noise[is_text], starts.reshape(-1).cumsum()[is_text.reshape(-1)]
        rows = np.nonzero(is_text)[0]
        is_first = np.diff(documents, prepend=0) > 0
        begins = noise & (is_first | ~np.append(False, noise[:-1]))
        earlier = begins.cumsum() - begins  # spans before a token, and those of other documents
        sentinels = facts.span_ids[np.where(begins, earlier - earlier[is_first][is_first.cumsum() - 1], 0)]

        is_read = begins | ~noise
        input_ids = _pad(np.where(begins, sentinels, ids)[is_read], rows[is_read], facts.pad_id)
        padded_documents = _pad(documents[is_read], rows[is_read], 0)
        is_written = np.stack((is_first, begins, noise), axis=1)
        written = np.stack((np.full_like(ids, facts.cls_id), sentinels, ids), axis=1)[is_written]
        following = np.append(written[1:], facts.cls_id)
        last_label = np.where(written == facts.cls_id, IGNORED, facts.sep_id)
        labels = np.where(following == facts.cls_id, last_label, following)
        writers = np.repeat(rows, is_written.sum(axis=1))
        decoder_ids, labels = _pad(written, writers, facts.pad_id), _pad(labels, writers, IGNORED).reshape(-1)
        targets = np.flatnonzero(labels != IGNORED)
        return {
            "input_ids": input_ids,
            "position_ids": positions_since(np.diff(padded_documents, axis=1, prepend=-1) != 0),
            "decoder_input_ids": decoder_ids,
            "decoder_position_ids": positions_since(decoder_ids == facts.cls_id),
            "target_positions": targets,
            "labels": labels[targets],
        }


def random_spans(lengths: np.ndarray, rate: float, most_spans: int, random: RandomRows) -> np.ndarray:
    """Return which tokens of texts of these lengths (B,) are noise, as bool, one text after the other.

    A text has a fixed number of noise tokens in a fixed number of spans of random lengths. Kept and noise spans
    alternate (T5's `random_spans_noise_mask`).
    """
    noisy = np.rint(lengths * rate).astype(np.int64)
    spans = np.minimum(np.rint(noisy / MEAN_SPAN).clip(1, most_spans).astype(np.int64), lengths - noisy)
    noisy = np.where(spans < 1, 0, noisy)
    spans = np.maximum(spans, 1)  # one kept span, and one of noise that may be empty
    kept, hidden = _random_parts(lengths - noisy, spans, "kept", random), _random_parts(noisy, spans, "noise", random)
    return np.repeat(np.arange(2 * len(kept)) % 2 == 1, np.stack((kept, hidden), axis=1).reshape(-1))


def _random_parts(totals: np.ndarray, parts: np.ndarray, draw: str, random: RandomRows) -> np.ndarray:
    """Return the lengths of `parts` (B,) positive parts of each of `totals` (B,), with every cut equally likely."""
    places, totals = np.arange(totals.max() + 1), totals[:, None]
    is_cut = random.choose(draw, places, (places > 0) & (places < totals), parts[:, None] - 1)
    rows, ends = np.nonzero(is_cut | (places == totals))
    return np.where(np.diff(rows, prepend=-1) > 0, ends, np.diff(ends, prepend=0))


def _pad(values: np.ndarray, rows: np.ndarray, fill: int) -> np.ndarray:
    """Return values (M,), given with their rows in rising order, as (B, longest row)."""
    lengths = np.bincount(rows)
    padded = np.full((len(lengths), lengths.max()), fill)
    padded[np.arange(lengths.max()) < lengths[:, None]] = values
    return padded
