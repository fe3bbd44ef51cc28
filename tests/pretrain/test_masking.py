"""Protects what is hidden from the model: the fixed count, whole units, BERT's 80/10/10, and no special token ever."""

import numpy as np
import pytest

from pretrain.objectives.masking import choose_targets, group_tokens, hide

STARTS_WORD = np.array([1, 1, 0, 0, 1, 1, 0, 1, 1, 0] * 12, dtype=bool)
MASKABLE = np.ones(120, dtype=bool)
MASKABLE[[0, 57, 119]] = False  # where [CLS] and [SEP] would stand


@pytest.mark.parametrize("scheme", ["token", "whole_word", "span"])
def test_every_row_hides_the_same_count_and_no_special_token(scheme):
    for seed in range(50):
        generator = np.random.default_rng(seed)
        positions, valid = choose_targets(group_tokens(STARTS_WORD, scheme, generator), MASKABLE, 30, generator)
        assert len(set(positions)) == 30
        assert valid.all()
        assert MASKABLE[positions].all()


@pytest.mark.parametrize("scheme", ["whole_word", "span"])
def test_units_are_hidden_whole_but_for_the_one_cut_to_fit(scheme):
    for seed in range(50):
        generator = np.random.default_rng(seed)
        groups = group_tokens(STARTS_WORD, scheme, generator)
        positions, _ = choose_targets(groups, np.ones(120, dtype=bool), 30, generator)
        hidden = np.isin(np.arange(120), positions)
        partly = [g for g in np.unique(groups) if 0 < hidden[groups == g].mean() < 1]
        assert len(partly) <= 1


def test_words_and_spans_begin_at_word_starts():
    assert group_tokens(STARTS_WORD[:10], "whole_word", None).tolist() == [0, 1, 1, 1, 2, 3, 3, 4, 5, 5]
    assert group_tokens(STARTS_WORD[:10], "token", None).tolist() == list(range(10))
    spans = group_tokens(STARTS_WORD, "span", np.random.default_rng(0))
    assert STARTS_WORD[1:][np.diff(spans) > 0].all()
    # a row that begins inside a word: the rest of that word is a unit too
    assert group_tokens(STARTS_WORD[2:6], "whole_word", None).tolist() == [0, 0, 1, 2]


def test_span_lengths_have_the_published_mean():
    """SpanBERT (section 3.1) reports a mean of 3.8 words."""
    words = np.ones(100_000, dtype=bool)
    spans = group_tokens(words, "span", np.random.default_rng(0))
    lengths = np.bincount(spans)[:-1]
    assert lengths.max() == 10
    assert abs(lengths.mean() - 3.8) < 0.05


def test_a_row_with_too_few_tokens_answers_for_those_only():
    maskable = np.zeros(20, dtype=bool)
    maskable[[3, 4]] = True
    positions, valid = choose_targets(np.arange(20), maskable, 5, np.random.default_rng(0))
    assert len(positions) == 5
    assert sorted(positions[valid]) == [3, 4]


def test_replacement_is_80_10_10():
    ids = np.full(200_000, 77)
    ordinary = np.arange(5, 1005)
    hidden = hide(ids, 4, ordinary, np.random.default_rng(0))
    assert abs((hidden == 4).mean() - 0.8) < 0.005
    assert abs((hidden == 77).mean() - 0.1) < 0.005
    assert np.isin(hidden[(hidden != 4) & (hidden != 77)], ordinary).all()


def test_same_generator_state_same_masks():
    first, second = (choose_targets(np.arange(50), np.ones(50, bool), 9, np.random.default_rng(3)) for _ in range(2))
    assert (first[0] == second[0]).all()
