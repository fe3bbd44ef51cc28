"""Stands in for helpers that transformers' tests of tensor parallelism and FSDP start their processes with, and that
its source distribution leaves out. One process per rank, on CPU with gloo, on CUDA with nccl."""

import multiprocessing
import socket
from collections.abc import Callable

import torch
import torch.distributed
from torch.multiprocessing import start_processes
from transformers.testing_utils import torch_device

# imported once by the server that ranks are forked from; a fresh interpreter per rank would take seconds for it
multiprocessing.set_forkserver_preload(
    ["torch.distributed.tensor", "transformers.testing_utils", "hf_tiny_transformer"]
)


def run_distributed(world_size: int) -> Callable[[Callable], Callable]:
    """`run_distributed(2)(function)(*args)` runs `function(rank, *args)` in a process group of 2."""

    def decorate(function: Callable) -> Callable:
        def run(*args) -> None:
            with socket.socket() as probe:
                probe.bind(("localhost", 0))
                port = probe.getsockname()[1]
            _start_rank_processes(_in_process_group, args=(world_size, port, function, args), nprocs=world_size)

        return run

    return decorate


def _in_process_group(rank: int, world_size: int, port: int, function: Callable, args: tuple) -> None:
    _set_rank_device(rank)
    torch.distributed.init_process_group(
        _get_distributed_backend(), init_method=f"tcp://localhost:{port}", rank=rank, world_size=world_size
    )
    try:
        function(rank, *args)
    finally:
        torch.distributed.destroy_process_group()


def _start_rank_processes(function: Callable, args: tuple, nprocs: int) -> None:
    """Runs `function(rank, *args)` in each process; raises what one of them raised."""
    start_processes(function, args=args, nprocs=nprocs, start_method="forkserver")


def _get_distributed_device_type() -> str:
    return torch.device(torch_device).type


def _get_distributed_backend() -> str:
    return "nccl" if _get_distributed_device_type() == "cuda" else "gloo"


def _get_rank_device(rank: int) -> torch.device:
    return torch.device("cuda", rank) if _get_distributed_device_type() == "cuda" else torch.device("cpu")


def _set_rank_device(rank: int) -> None:
    if _get_distributed_device_type() == "cuda":
        torch.cuda.set_device(rank)
