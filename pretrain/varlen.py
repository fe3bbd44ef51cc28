"""Attention over packed documents with torch's own flash kernel: it reads their bounds, so that there is no mask."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_tiny_transformer.common.environment import supports_bf16

NAME = "varlen"


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention within the documents of all rows: (B, H, T, D) -> (B, T, H, D).

    `cu_seq_lens_q` (N + 1,) int32 are the bounds of the documents in the B * T tokens; kernels need fp16 or bf16.
    `sliding_window` counts the tokens on either side, the query itself included; the kernel does not count it.
    """
    from torch.nn.attention.varlen import varlen_attn

    batch_size, _, length, _ = query.shape
    query, key, value = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    side = -1 if sliding_window is None else sliding_window - 1
    bounds, window = cu_seq_lens_q, (side, 0 if module.is_causal else side)
    attended = varlen_attn(query, key, value, bounds, bounds, length, length, scale=scaling, window_size=window)
    attended = cast(torch.Tensor, attended)  # a tuple only if more outputs are requested
    return attended.unflatten(0, (batch_size, length)), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def is_possible(model: PreTrainedModel, packs_documents: bool) -> bool:
    """Return whether the kernel exists here and computes what this model's layers compute."""
    config = model.config
    dropout = getattr(config, "attention_dropout", 0.0) or getattr(config, "attention_probs_dropout_prob", 0.0)
    head_dim = config.hidden_size // config.num_attention_heads
    kernel_exists = supports_bf16() and torch.__version__ >= "2.10" and torch.cuda.get_device_capability() >= (8, 0)
    fits = dropout == 0 and head_dim % 8 == 0 and head_dim <= 256
    return kernel_exists and fits and packs_documents and not config.is_encoder_decoder


def document_bounds(position_ids: np.ndarray) -> np.ndarray:
    """Return (N + 1,) int32: where documents begin in the flattened rows (B, T), and where the last one ends.

    Empty documents at the end make N a multiple of B, so that few different shapes occur.
    """
    starts = np.flatnonzero(position_ids.reshape(-1) == 0)
    count = -(-len(starts) // len(position_ids)) * len(position_ids)
    bounds = np.full(count + 1, position_ids.size, dtype=np.int32)
    bounds[: len(starts)] = starts
    return bounds
