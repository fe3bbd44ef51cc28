"""Rank and number of the processes that `accelerate launch` started, known before anything is initialised."""

from __future__ import annotations

import os
import sys

import torch.distributed


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Return whether this process prints and writes files."""
    return rank() == 0


def wait_for_everyone() -> None:
    """Wait until all processes have arrived here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def say(line: str) -> None:
    """Print a line on stderr in the main process."""
    if is_main():
        print(line, file=sys.stderr, flush=True)
