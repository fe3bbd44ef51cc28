"""How much arithmetic a training step asks for, and how fast this machine multiplies matrices."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

PASSES = 3  # the backward pass computes each product twice more: for its input and for its weight


@dataclass(frozen=True)
class Shape:
    """Of a BERT: feed-forward width four times the hidden one."""

    num_layers: int
    hidden_size: int
    num_heads: int
    vocab_size: int

    def step_flops(self, rows: int, length: int, predicted: int) -> float:
        """Multiplications and additions of one training step, matrix products only.

        Args:
            predicted: tokens that the vocabulary-wide head runs on.
        """
        tokens, width = rows * length, self.hidden_size
        block = 2 * tokens * (4 * width**2 + 8 * width**2) + 2 * 2 * tokens * length * width
        head = 2 * predicted * (width**2 + width * self.vocab_size)
        return PASSES * (self.num_layers * block + head)


def matrix_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 1.0) -> float:
    """FLOP/s of a product of two square matrices, 1024 wide on a CPU and 8192 on a GPU."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products, start = 0, None
    while start is None or time.perf_counter() - start < seconds:
        a @ b
        synchronize(device)
        if start is None:  # the first one warms up
            start = time.perf_counter()
        else:
            products += 1
    return products * 2 * size**3 / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; a CPU has nothing pending."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
