"""Utilisation: the arithmetic of a training step, and the arithmetic that the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

PASSES = 3  # the backward pass computes two more products for each one: for its input and for its weight
MEASURING_SECONDS = 0.3


def step_flops(model: PreTrainedModel, *, rows: int, length: int, predicted: int) -> float:
    """Return the FLOPs of the matrix products of one training step; `predicted` tokens go through the head.

    A Seq2Seq model counts as if its decoder also read `length` tokens; its targets are shorter.
    """
    config = model.config
    layers = getattr(config, "num_decoder_layers", 0) + config.num_hidden_layers
    trunk = {id(m): m.weight.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear)}
    head = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in trunk]
    tokens = rows * length
    scores_and_mixing = 2 * 2 * layers * tokens * length * config.hidden_size
    return PASSES * (2 * tokens * sum(trunk.values()) + scores_and_mixing + 2 * predicted * sum(head))


def matrix_rate(
    device: torch.device,
    precision: str,
    *,
    seconds: float = MEASURING_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the FLOP/s of a product of square matrices in fp32 ("no") or bf16, of width 1024 on CPU, 8192 on GPU."""
    size, dtype = 8192 if device.type == "cuda" else 1024, torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b  # warms up
    synchronize(device)
    products, start = 0, clock()
    while clock() - start < seconds:
        a @ b
        synchronize(device)
        products += 1
    return products * 2 * size**3 / (clock() - start)


def synchronize(device: torch.device) -> None:
    """Wait for the pending work of a GPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
