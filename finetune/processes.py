"""Several processes under `accelerate launch`: Trainer divides the work; here is who speaks and who writes."""

from __future__ import annotations

import os

import torch.distributed


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """The process that prints and writes."""
    return index() == 0


def wait_for_everyone() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
