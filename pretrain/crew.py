"""The processes of a run while they prepare its data: who takes which share, and how they wait for each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch.distributed
from accelerate import Accelerator

from hf_tiny_transformer.runs import EXIT_BAD_INPUT, UserError

PATIENCE = timedelta(days=7)  # how long one waits for the slowest; NCCL would give up after ten minutes

T = TypeVar("T")


class Crew:
    """Processes that see the same files. Waiting goes over gloo, which knows at once when one of them has ended."""

    def __init__(self, rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world
        self._group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE) if world > 1 else None

    @classmethod
    def of(cls, accelerator: Accelerator) -> Crew:
        """All processes of a run; every one of them has to call this."""
        return cls(accelerator.process_index, accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process does what only one has to do."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """What this process takes on: every `world`-th."""
        return items[self.rank :: self.world]

    def together(self, work: Callable[[], T]) -> T:
        """Each does its work; returns one's own result when all have done.

        Raises:
            UserError: from one's own work. In the others, that process being the one to say it, a silent SystemExit.
        """
        result, _ = self._do(work)
        return result

    def main_only(self, work: Callable[[], T]) -> T:
        """The main process does it; returns its result, which has to be small, in all of them.

        Raises:
            UserError, SystemExit: as `together`.
        """
        _, result = self._do(work if self.is_main else lambda: None)
        return result

    def _do(self, work: Callable[[], T]) -> tuple[T, T]:
        """One's own result and the main process's."""
        if self._group is None:
            result = work()
            return result, result
        result = error = None
        try:
            result = work()
        except UserError as raised:
            error = raised
        reports: list = [None] * self.world
        mine = (error is not None, result if self.is_main else None)
        torch.distributed.all_gather_object(reports, mine, group=self._group)
        failed = [rank for rank, (has_failed, _) in enumerate(reports) if has_failed]
        if error is not None and failed[0] == self.rank:
            raise error
        if failed:
            raise SystemExit(EXIT_BAD_INPUT)
        return result, reports[0][1]


ALONE = Crew()
