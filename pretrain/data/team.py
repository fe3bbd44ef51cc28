"""The processes of a run while they prepare its data: they share the work and wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch.distributed
from tqdm import tqdm

from hf_tiny_transformer.common.errors import EXIT_BAD_INPUT, UserError
from hf_tiny_transformer.common.processes import is_main, rank, world_size

PATIENCE = timedelta(days=7)  # how long to wait for the slowest; NCCL would give up after ten minutes

T = TypeVar("T")


class Team:
    """All processes; they see the same files. All construct the object, and wait for each other over gloo."""

    def __init__(self) -> None:
        self.rank, self.world, self.is_main = rank(), world_size(), is_main()
        self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if self.world > 1 else None

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this process: every `world`-th."""
        return items[self.rank :: self.world]

    def progress(self, documents: Iterable[T], title: str, total: int | None = None) -> Iterable[T]:
        """Show a progress bar in the main process, if stderr is a terminal."""
        is_hidden = None if self.is_main else True  # None: outside a terminal
        return tqdm(documents, title, total, unit=" documents", leave=False, disable=is_hidden)

    def main_only(self, work: Callable[[], T]) -> T:
        """Let the main process work; return its result, which must be small, in all of them. Raises as `together`."""
        return self.together(work, of_main=True)

    def together(self, work: Callable[[], T], *, of_main: bool = False) -> T:
        """Let each process work, and return its own result when all have finished.

        With `of_main` only the main process works, and all return its result.

        Raises:
            UserError: The work of this process failed. If only others failed, this process exits silently.
        """
        if self._group is None:
            return work()
        results: list[T] = []  # of this process, if it works and succeeds
        error = None
        try:
            results += [work()] if self.is_main or not of_main else []
        except UserError as raised:
            error = raised
        reports: list = [None] * self.world
        mine = (error is not None, results if of_main else [])
        torch.distributed.all_gather_object(reports, mine, group=self._group)
        failed = [rank for rank, (has_failed, _) in enumerate(reports) if has_failed]
        if error is not None and failed[0] == self.rank:
            raise error
        if failed:
            raise SystemExit(EXIT_BAD_INPUT)
        return reports[0][1][0] if of_main else results[0]
