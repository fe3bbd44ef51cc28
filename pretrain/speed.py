"""How fast a run is, and how fast it could be: arithmetic that must be done over arithmetic that the machine can do."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

PASSES = 3  # the backward pass computes each product twice more: for its input and for its weight
MEASURING_SECONDS = 0.3


def step_flops(model: PreTrainedModel, *, rows: int, length: int, predicted: int) -> float:
    """Multiplications and additions of one training step, matrix products only, nothing computed twice.

    A Seq2Seq model is counted as if both halves read `length` tokens: too much by what its targets are shorter.

    Args:
        predicted: tokens that what stands on the trunk runs on: the output layer and what is before it.
    """
    config = model.config
    layers = getattr(config, "num_decoder_layers", 0) + config.num_hidden_layers
    trunk = {id(m): m.weight.numel() for m in model.base_model.modules() if isinstance(m, nn.Linear)}
    head = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and id(m) not in trunk]
    tokens = rows * length
    scores_and_mixing = 2 * 2 * layers * tokens * length * config.hidden_size
    return PASSES * (2 * tokens * sum(trunk.values()) + scores_and_mixing + 2 * predicted * sum(head))


def matrix_rate(
    device: torch.device, *, seconds: float = MEASURING_SECONDS, clock: Callable[[], float] = time.perf_counter
) -> float:
    """FLOP/s of a product of two square matrices: fp32 and 1024 wide on a CPU, bf16 and 8192 wide on a GPU."""
    on_gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products, start = 0, None
    while start is None or clock() - start < seconds:
        a @ b
        synchronize(device)
        if start is None:  # the first one warms up
            start = clock()
        else:
            products += 1
    return products * 2 * size**3 / (clock() - start)


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; a CPU has nothing pending."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
