"""Protects what is hidden from the model: the fixed count, whole units, BERT's 80/10/10, and no special token ever."""

import numpy as np
import pytest

from pretrain.data.tokenizer import VocabularyFacts
from pretrain.objectives.masking import IGNORED, group_tokens, hide, mask_rows
from pretrain.objectives.random_rows import RandomRows

ROWS, LENGTH, COUNT = 50, 120, 30
VOCABULARY = 1005  # 2 is [CLS], 3 is [SEP], 4 is [MASK]; every third ordinary token continues a word
IDS = np.arange(VOCABULARY)
STARTS_WORD = (IDS < 5) | (IDS % 3 != 0)
FACTS = VocabularyFacts(2, 3, 4, 0, IDS < 5, STARTS_WORD, IDS[5:], IDS[:0])
SCHEMES = ["token", "whole_word", "span"]


def texts():
    ids = np.random.default_rng(0).integers(5, VOCABULARY, size=(ROWS, LENGTH))
    ids[:, 0], ids[:, 57], ids[:, -1] = 2, 3, 3
    return ids


def masked(ids, scheme, rate=COUNT / LENGTH):
    """The input ids of the model, the columns of its targets and their labels, all with one row per text."""
    batch = mask_rows(ids, rate, scheme, FACTS, RandomRows(0, np.arange(len(ids))))
    columns = batch["target_positions"].reshape(len(ids), -1) - np.arange(len(ids))[:, None] * ids.shape[1]
    return batch["input_ids"], columns, batch["labels"].reshape(len(ids), -1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_row_hides_the_same_count_and_no_special_token(scheme):
    ids = texts()
    seen, columns, labels = masked(ids, scheme)
    assert columns.shape == (ROWS, COUNT)
    assert columns.min() >= 0 and columns.max() < LENGTH and (np.diff(columns) > 0).all(), "rising, in their own row"
    assert (labels == np.take_along_axis(ids, columns, 1)).all() and (labels >= 5).all()
    np.put_along_axis(seen, columns, labels, 1)
    assert (seen == ids).all(), "everything else is untouched"


@pytest.mark.parametrize("scheme", ["whole_word", "span"])
def test_units_are_hidden_whole_but_for_the_one_cut_to_fit(scheme):
    ids = texts()
    _, columns, _ = masked(ids, scheme)
    is_hidden = np.zeros(ids.shape, dtype=bool)
    np.put_along_axis(is_hidden, columns, True, 1)
    for groups, row, hidden in zip(
        group_tokens(STARTS_WORD[ids], scheme, RandomRows(0, np.arange(ROWS))), ids, is_hidden, strict=True
    ):
        ordinary = row >= 5
        partly = [
            g for g in np.unique(groups) if 0 < hidden[(groups == g) & ordinary].sum() < (groups == g)[ordinary].sum()
        ]
        assert len(partly) <= 1
        if partly:
            assert (np.diff(hidden[(groups == partly[0]) & ordinary].astype(int)) <= 0).all(), "its end is cut off"


def test_words_and_spans_begin_at_word_starts():
    starts_word = np.array([[1, 1, 0, 0, 1, 1, 0, 1, 1, 0] * 12] * 20, dtype=bool)
    random = RandomRows(0, np.arange(20))
    assert group_tokens(starts_word[:1, :10], "whole_word", random).tolist() == [[0, 1, 1, 1, 2, 3, 3, 4, 5, 5]]
    assert group_tokens(starts_word[:1, :10], "token", random).tolist() == [list(range(10))]
    spans = group_tokens(starts_word, "span", random)
    assert starts_word[:, 1:][np.diff(spans) > 0].all()
    # a row that begins inside a word: the rest of that word is a unit too
    assert group_tokens(starts_word[:1, 2:6], "whole_word", random).tolist() == [[0, 0, 1, 2]]


def test_span_lengths_have_the_published_mean():
    """SpanBERT (section 3.1) reports a mean of 3.8 words."""
    spans = group_tokens(np.ones((100, 1000), dtype=bool), "span", RandomRows(0, np.arange(100)))
    lengths = np.concatenate([np.bincount(row)[:-1] for row in spans])
    assert lengths.min() == 1 and lengths.max() == 10
    assert abs(lengths.mean() - 3.8) < 0.05


def test_every_place_is_equally_likely_to_be_hidden():
    ids = np.full((20_000, 16), 7)
    _, columns, _ = masked(ids, "token", 0.25)
    assert abs(np.bincount(columns.ravel()) / len(ids) - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / len(ids))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_row_with_too_few_tokens_answers_for_those_only(scheme):
    ids = np.full((2, 20), 3)
    ids[0, [3, 4]] = 7, 8
    seen, columns, labels = masked(ids, scheme, 0.25)
    assert columns.shape == (2, 5)
    assert labels[0].tolist().count(IGNORED) == 3 and (labels[1] == IGNORED).all()
    assert columns[0][labels[0] != IGNORED].tolist() == [3, 4] and labels[0][labels[0] != IGNORED].tolist() == [7, 8]
    assert (seen[1] == 3).all() and (np.delete(seen[0], [3, 4]) == 3).all(), "what has no label stays"


def test_replacement_is_80_10_10():
    ids = np.full((2000, 100), 77)
    ordinary = np.arange(5, 1005)
    hidden = hide(ids, 4, ordinary, RandomRows(0, np.arange(2000)))
    assert abs((hidden == 4).mean() - 0.8) < 0.005
    assert abs((hidden == 77).mean() - 0.1) < 0.005
    assert np.isin(hidden[(hidden != 4) & (hidden != 77)], ordinary).all()
