"""The order of training: batches of texts of like length, themselves in random order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

WINDOW = 16  # batches whose texts are sorted among themselves: more saves hardly any padding, and mixes less


class LengthGroupedOrder(torch.utils.data.Sampler[int]):
    """Each epoch another permutation of the rows, cut into windows, sorted within them, cut into batches, and those
    shuffled. The order depends on seed and epoch alone; a run that is resumed begins with epoch `first`.

    transformers' strategy `group_by_length` leaves the batches of a window sorted from long to short, which on a small
    data set is the whole epoch, and draws from the global generator, which after a few dropouts is no longer the same
    in all processes.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, first: int = 0):
        self.lengths, self.batch_size = torch.tensor(lengths), batch_size
        self.generator = torch.Generator().manual_seed(seed)
        for _ in range(first):
            iter(self)

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rows = torch.randperm(len(self.lengths), generator=self.generator)
        windows = rows.split(WINDOW * self.batch_size)
        rows = torch.cat([window[self.lengths[window].argsort(stable=True)] for window in windows])
        batches = rows.split(self.batch_size)
        whole = len(rows) // self.batch_size  # a short batch has to stay the last one
        order = torch.randperm(whole, generator=self.generator).tolist()
        return iter(torch.cat([batches[i] for i in [*order, *range(whole, len(batches))]]).tolist())
