"""Replaces helpers that start the processes of transformers' tests of tensor parallelism and FSDP.

Its source distribution lacks them. Each rank is a process, on CPU with gloo.
"""

import multiprocessing
import socket
from collections.abc import Callable

import torch
import torch.distributed
from torch.multiprocessing import start_processes

# Imported once, by the server that forks the ranks; a new interpreter per rank would take seconds.
multiprocessing.set_forkserver_preload(
    ["torch.distributed.tensor", "transformers.testing_utils", "hf_tiny_transformer"]
)


def run_distributed(world_size: int) -> Callable[[Callable], Callable]:
    """Return a decorator that runs `function(rank, *args)` in each process of a group."""

    def decorate(function: Callable) -> Callable:
        def run(*args) -> None:
            with socket.socket() as probe:
                probe.bind(("localhost", 0))
                port = probe.getsockname()[1]
            _start_rank_processes(_in_process_group, args=(world_size, port, function, args), nprocs=world_size)

        return run

    return decorate


def _in_process_group(rank: int, world_size: int, port: int, function: Callable, args: tuple) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://localhost:{port}", rank=rank, world_size=world_size
    )
    try:
        function(rank, *args)
    finally:
        torch.distributed.destroy_process_group()


def _start_rank_processes(function: Callable, args: tuple, nprocs: int) -> None:
    """Run `function(rank, *args)` in each process, and raise what one of them raises."""
    start_processes(function, args=args, nprocs=nprocs, start_method="forkserver")


# The names below are imported by transformers' tests.
def _get_distributed_device_type() -> str:
    return "cpu"


def _get_distributed_backend() -> str:
    return "gloo"


def _get_rank_device(rank: int) -> torch.device:
    return torch.device("cpu")


def _set_rank_device(rank: int) -> None:
    pass
