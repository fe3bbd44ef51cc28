"""Token predictions and their loss, optionally without keeping the logits in memory."""

from collections.abc import Callable
from typing import Any, Protocol, Unpack

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.configuration_utils import PreTrainedConfig

from .layers import ForwardKwargs

IGNORED = -100
# Logits computed at once, in elements: small enough for a CPU's caches, large enough to keep a GPU busy.
CPU_CHUNK, GPU_CHUNK = 2**24, 2**28
# On CPU, a product of few rows with a wide matrix is a third faster in slices of this many columns (benchmarks/LOG.md).
CPU_SLICE = 512


class LanguageModel(Protocol):
    """What `predict_tokens` reads from a model."""

    lm_head: nn.Linear

    @property
    def config(self) -> PreTrainedConfig: ...
    @property
    def loss_function(self) -> Callable[..., torch.Tensor]: ...


def predict_tokens(
    model: LanguageModel,
    features: torch.Tensor,
    labels: torch.Tensor | None,
    *,
    skip_logits: bool,
    **kwargs: Unpack[ForwardKwargs],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Apply the language-model head and compute its loss.

    Args:
        features: (..., hidden_size), the input of the head.
        labels: (...) token ids, -100 = ignored.
        skip_logits: Whether to compute the loss only, in chunks.
        kwargs: Passed to `loss_function`. `num_items_in_batch`, if given, replaces the number of labels as the divisor
            of the summed loss.

    Returns:
        The loss, None without labels; and the logits (..., vocab_size), None with `skip_logits`.

    Raises:
        ValueError: If `skip_logits` is set and there are no labels.
    """
    if not skip_logits:
        logits = model.lm_head(features)
        if labels is None:
            return None, logits
        vocab_size = model.config.vocab_size
        return model.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs), logits
    if labels is None:
        raise ValueError("skip_logits=True returns the loss only and requires labels")
    features, labels = features.flatten(0, -2), labels.flatten()
    divisor = kwargs.get("num_items_in_batch")
    if divisor is None:
        divisor = (labels != IGNORED).sum()
    loss = LinearCrossEntropy.apply(features, model.lm_head.weight, model.lm_head.bias, labels) / divisor
    if model.lm_head._forward_hooks:  # FSDP of torch before 2.13 fails if a sharded module is not called
        loss = loss + model.lm_head(features[:0]).sum()
    return loss, None


class LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of a linear layer's logits, computed together with its gradients, one chunk at a time.

    The logits are overwritten by their own gradient, so that each chunk is written once and read three times. Plain
    autograd keeps the logits, their log-softmax and its gradient. Under autocast the products run in its dtype, softmax
    and sums in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Compute sum(cross_entropy(features @ weight.T + bias, labels)) in fp32: (N, D), (V, D), (V,), (N,) -> ()."""
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.needs_gradients = any(ctx.needs_input_grad)
        # Chunks are collected and summed: compiled by torch 2.11, in-place additions to a tensor that was created here
        # give gradients of zero.
        losses, of_features = [], []
        if ctx.needs_gradients:
            of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        with torch.autocast(device, enabled=False):
            rows = max(1, (CPU_CHUNK if device == "cpu" else GPU_CHUNK) // len(weight))
            w, b = weight.to(dtype), bias.to(dtype)
            for x, chunk_labels in zip(features.to(dtype).split(rows), labels.split(rows), strict=True):
                is_target = (chunk_labels != IGNORED).unsqueeze(1)
                targets = chunk_labels.unsqueeze(1).where(is_target, 0)
                probabilities = _softmax_of_product(x, w, b)
                of_targets = probabilities.gather(1, targets)
                # A probability below the smallest fp32 number gives a large loss, not an infinite one.
                log_likelihood = of_targets.clamp_min(torch.finfo(torch.float).tiny).log()
                losses.append((log_likelihood.neg() * is_target).sum())
                if ctx.needs_gradients:
                    # The derivative by the logits is softmax minus one-hot.
                    derivative = probabilities.scatter_(1, targets, of_targets - 1).to(dtype)
                    is_target = is_target.to(dtype)
                    of_features.append((derivative @ w) * is_target)
                    of_weight = of_weight + derivative.t() @ (x * is_target)
                    of_bias = of_bias + (derivative.t() @ is_target).squeeze(1)
        if ctx.needs_gradients:
            ctx.save_for_backward(torch.cat(of_features).to(features.dtype), of_weight, of_bias)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that `forward` computed."""
        return *(kept * gradient.to(kept.dtype) for kept in ctx.saved_tensors), None


def _softmax_of_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Compute softmax(x @ weight.T + bias) in fp32: (n, D), (V, D), (V,) -> (n, V)."""
    step = CPU_SLICE if x.device.type == "cpu" else len(weight)
    slices = [slice(first, first + step) for first in range(0, len(weight), step)]
    logits = torch.cat([torch.addmm(bias[columns], x, weight[columns].t()) for columns in slices], dim=1)
    return torch.softmax(logits, dim=1, dtype=torch.float)
