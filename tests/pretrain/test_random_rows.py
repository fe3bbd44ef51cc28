"""Protects that the numbers of a row are uniform, independent, and the same in every batch, process and version.

Seeds are fixed, so the results are too. Limits are five standard deviations of independent uniform numbers.
"""

import numpy as np
import pytest

from pretrain.objectives.random_rows import GAMMA, RandomRows, _splitmix64

ROWS, WIDTH, LIMIT = 2000, 128, 5.0


def numbers(seed=1, stage=0, epoch=0, draw="a"):
    """The numbers of neighbouring rows, (ROWS, WIDTH)."""
    return RandomRows(seed, stage, epoch, np.arange(ROWS)).uniform(draw, WIDTH)


def test_the_sequence_is_splitmix64():
    states = np.uint64(1234567) + np.arange(5, dtype=np.uint64) * GAMMA
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # seed 1234567, rosettacode.org
    assert _splitmix64(states).tolist() == [*published, 4593380528125082431, 16408922859458223821]


def test_the_numbers_never_change():
    """A run that was started with an older version continues with the same masks."""
    assert RandomRows(1, 2, np.array([3]), np.array([4])).bits("targets", np.arange(2)).tolist() == [
        [8423302669305821704, 12658125323317980499]
    ]


def test_a_row_does_not_depend_on_the_others():
    epochs, rows = np.array([0, 0, 1]), np.array([7, 8, 7])
    together = RandomRows(5, 1, epochs, rows).uniform("a", 40)
    for i in range(3):
        alone = RandomRows(5, 1, epochs[i : i + 1], rows[i : i + 1]).uniform("a", 30)
        assert (together[i, :30] == alone[0]).all()


@pytest.mark.parametrize("cells", [2, 16, 256])
def test_numbers_are_uniform_over_all_and_in_each_row_and_column(cells):
    drawn = (numbers() * cells).astype(int)
    assert drawn.min() == 0 and drawn.max() == cells - 1
    for axis_counts in (np.bincount(drawn.ravel()), *(np.bincount(column, minlength=cells) for column in drawn.T[:9])):
        expected = axis_counts.sum() / cells
        chi_square = ((axis_counts - expected) ** 2 / expected).sum()
        assert abs(chi_square - (cells - 1)) < LIMIT * np.sqrt(2 * (cells - 1))


def test_mean_variance_and_their_spread_over_rows_and_columns():
    drawn = numbers()
    assert abs(drawn.mean() - 1 / 2) < LIMIT * np.sqrt(1 / 12 / drawn.size)
    assert abs(drawn.var() - 1 / 12) < LIMIT * np.sqrt(1 / 180 / drawn.size)
    for axis in (0, 1):  # means of columns, means of rows: as far apart as those of independent numbers
        means = drawn.mean(axis=axis)
        assert means.var() * 12 * drawn.shape[axis] == pytest.approx(1, abs=LIMIT * np.sqrt(2 / len(means)))


def test_neighbours_of_every_kind_are_uncorrelated():
    drawn = numbers()
    pairs = {
        "rows": (drawn[1:], drawn[:-1]),
        "columns": (drawn[:, 1:], drawn[:, :-1]),
        "diagonals": (drawn[1:, 1:], drawn[:-1, :-1]),
        "seeds": (drawn, numbers(seed=2)),
        "stages": (drawn, numbers(stage=1)),
        "epochs": (drawn, numbers(epoch=1)),
        "seed and epoch exchanged": (numbers(seed=1, epoch=2), numbers(seed=2, epoch=1)),
        "draws": (drawn, numbers(draw="b")),
    }
    for name, (a, b) in pairs.items():
        for moment in (1, 2):  # of the numbers, and of their distances from the mean
            a, b = (a, b) if moment == 1 else (abs(a - 0.5), abs(b - 0.5))
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < LIMIT / np.sqrt(a.size), name


def test_every_bit_is_as_often_set_as_not():
    bits = RandomRows(1, 0, 0, np.arange(ROWS)).bits("a", np.arange(WIDTH)).reshape(-1, 1)
    shares = (bits >> np.arange(64, dtype=np.uint64) & 1).mean(axis=0)
    assert abs(shares - 0.5).max() < LIMIT / 2 / np.sqrt(len(bits))


def test_integers_reach_every_value_equally_often():
    drawn = RandomRows(1, np.arange(ROWS)).integers("a", 50, 7)
    assert abs(np.bincount(drawn.ravel()) / drawn.size - 1 / 7).max() < LIMIT * np.sqrt(6 / 49 / drawn.size)
    bounds = 1 + np.arange(ROWS)[:, None] % 9
    drawn = RandomRows(1, np.arange(ROWS)).integers("a", 50, bounds)
    assert ((drawn >= 0) & (drawn < bounds)).all() and (drawn.max(axis=1) == bounds[:, 0] - 1).mean() > 0.99


def test_every_pair_of_columns_is_equally_often_chosen():
    rows, width = 20_000, 6
    chosen = RandomRows(1, np.arange(rows)).choose("a", np.arange(width), np.arange(width) > 0, np.full((rows, 1), 2))
    assert (chosen.sum(axis=1) == 2).all() and not chosen[:, 0].any()
    together = (chosen[:, 1:, None] & chosen[:, None, 1:]).mean(axis=0)[np.triu_indices(width - 1, 1)]
    assert abs(together - 0.1).max() < LIMIT * np.sqrt(0.09 / rows)


def test_each_row_has_its_own_count():
    counts = np.arange(9)[:, None]
    chosen = RandomRows(1, np.arange(9)).choose("a", np.arange(8), np.ones(8, dtype=bool), counts)
    assert (chosen.sum(axis=1, keepdims=True) == counts).all()
