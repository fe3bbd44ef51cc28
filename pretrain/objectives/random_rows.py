"""Random numbers for the rows of a batch, computed in whole arrays and without state."""

from __future__ import annotations

import zlib

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)
COLUMN_BITS = 24  # bounds the length of a row


class RandomRows:
    """Random numbers for B rows, which depend only on the row's key, the name of the draw and the column.

    They are the sequence of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators",
    with the constants of Vigna's splitmix64.c) whose seed is a hash of key and name. Any number of it can be computed
    directly, so a row has the same numbers in every batch and every process. A key is given by its parts, which are
    integers or (B,).
    """

    def __init__(self, *key: int | np.ndarray):
        self._keys = np.zeros(1, dtype=np.uint64)
        for part in key:
            self._keys = _splitmix64(self._keys + np.asarray(part).astype(np.uint64))

    def bits(self, draw: str, columns: np.ndarray) -> np.ndarray:
        """Return the numbers at `columns`, (T,) or (B, T), of each row's sequence, as (B, T) uint64."""
        seeds = _splitmix64(self._keys + np.uint64(zlib.crc32(draw.encode())))
        return _splitmix64(seeds[:, None] + columns.astype(np.uint64) * GAMMA)

    def uniform(self, draw: str, width: int) -> np.ndarray:
        """Return (B, width) floats in [0, 1)."""
        return (self.bits(draw, np.arange(width)) >> 11) * 2.0**-53

    def integers(self, draw: str, width: int, high: int | np.ndarray) -> np.ndarray:
        """Return (B, width) integers in [0, high); `high` is less than 2**32, and may be (B, 1)."""
        scaled = (self.bits(draw, np.arange(width)) >> 32) * np.asarray(high).astype(np.uint64)
        return (scaled >> 32).astype(np.int64)

    def choose(self, draw: str, groups: np.ndarray, eligible: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Choose whole groups, (T,) or (B, T), of eligible columns in random order; the last one is cut to fit.

        Returns:
            (B, T) bool, with `counts` (B, 1) columns in each row; others are chosen where too few are eligible.
        """
        # distinct numbers: not eligible (1 bit), random order of the groups (39 bits), column
        priorities = self.bits(draw, groups) >> (COLUMN_BITS + 1) << COLUMN_BITS
        priorities |= np.arange(groups.shape[-1], dtype=np.uint64)
        priorities = np.where(eligible, priorities, priorities | np.uint64(1 << 63))
        last = np.take_along_axis(np.sort(priorities, axis=1), counts - 1, axis=1)
        return (priorities <= last) & (counts > 0)


def _splitmix64(state: np.ndarray) -> np.ndarray:
    z = state + GAMMA
    z ^= z >> 30
    z *= 0xBF58476D1CE4E5B9
    z ^= z >> 27
    z *= 0x94D049BB133111EB
    z ^= z >> 31
    return z
