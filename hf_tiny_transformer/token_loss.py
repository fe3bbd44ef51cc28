"""From features to token predictions and their loss; the loss also without ever holding all logits."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable

IGNORED = -100
# Logits held at once, in elements: what a CPU's caches and a GPU's memory take well.
CPU_CHUNK, GPU_CHUNK = 2**24, 2**28
# A CPU product of few rows with a wide matrix is a third faster in slices of so many columns (benchmarks/LOG.md).
CPU_SLICE = 512


def predict_tokens(
    model: nn.Module, features: torch.Tensor, labels: torch.Tensor | None, *, skip_logits: bool, **kwargs
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The loss, None without labels, and the logits (..., vocab_size), None with `skip_logits`.

    Args:
        model: has `lm_head` and transformers' `loss_function`.
        features: (..., hidden_size), what the output layer reads.
        labels: (...) token ids, -100 where nothing is to be predicted.
        kwargs: for `loss_function`; `num_items_in_batch` is what the sum of the losses is divided by instead of the
            count of labels here.

    Raises:
        ValueError: `skip_logits` without labels, which would leave nothing.
    """
    if not skip_logits:
        logits = model.lm_head(features)
        if labels is None:
            return None, logits
        vocab_size = model.config.vocab_size
        return model.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs), logits
    if labels is None:
        raise ValueError("skip_logits leaves the loss only, and that needs labels")
    features, labels = features.flatten(0, -2), labels.flatten()
    divisor = kwargs.get("num_items_in_batch")
    if divisor is None:
        divisor = (labels != IGNORED).sum()
    return LinearCrossEntropy.apply(features, model.lm_head.weight, model.lm_head.bias, labels) / divisor, None


class LinearCrossEntropy(torch.autograd.Function):
    """sum(cross_entropy(features @ weight.T + bias, labels)) with its gradients computed beside it, a chunk at a time.

    The logits are overwritten by their own gradient, so that each chunk is written once and read three times where
    plain autograd keeps the logits, their log-softmax and its gradient. Under autocast the products run in its dtype,
    softmax and sums in fp32.
    """

    @staticmethod
    def forward(ctx, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor):
        """(N, D), (V, D), (V,), (N,) with -100 = ignored -> a scalar, fp32."""
        device = features.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.needs_gradients = any(ctx.needs_input_grad)
        with torch.autocast(device, enabled=False):
            rows = max(1, (CPU_CHUNK if device == "cpu" else GPU_CHUNK) // len(weight))
            x, w, b = features.to(dtype), weight.to(dtype), bias.to(dtype)
            counts = labels != IGNORED
            targets = labels.where(counts, 0)
            loss = features.new_zeros((), dtype=torch.float)
            if ctx.needs_gradients:
                gradients = (torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias))
            for start in range(0, len(x), rows):
                part = slice(start, start + rows)
                probabilities = _softmax_of_product(x[part], w, b)
                of_targets = probabilities.gather(1, targets[part, None])
                # a probability too small for fp32 costs what the smallest one does, not infinity
                tiny = torch.finfo(torch.float).tiny
                loss += (of_targets.clamp_min(tiny).log().squeeze(1).neg() * counts[part]).sum()
                if ctx.needs_gradients:
                    # softmax minus one-hot is the loss's derivative by the logits
                    probabilities.scatter_(1, targets[part, None], of_targets - 1)
                    _accumulate(gradients, part, probabilities.to(dtype), x[part], w, counts[part, None].to(dtype))
        if ctx.needs_gradients:
            ctx.save_for_backward(gradients[0].to(features.dtype), *gradients[1:])
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        """The gradients kept by `forward`, scaled."""
        return *(kept * gradient.to(kept.dtype) for kept in ctx.saved_tensors), None


def _softmax_of_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """softmax(x @ weight.T + bias) in fp32: (n, D), (V, D), (V,) -> (n, V)."""
    step = CPU_SLICE if x.device.type == "cpu" else len(weight)
    slices = [slice(first, first + step) for first in range(0, len(weight), step)]
    logits = torch.cat([torch.addmm(bias[columns], x, weight[columns].t()) for columns in slices], dim=1)
    return torch.softmax(logits, dim=1, dtype=torch.float)


def _accumulate(
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    part: slice,
    derivative: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    counts: torch.Tensor,
) -> None:
    """Adds a chunk's share to the gradients of features, weight and bias; rows with `counts` 0 add nothing."""
    of_features, of_weight, of_bias = gradients
    of_features[part] = (derivative @ weight) * counts
    of_weight += derivative.t() @ (x * counts)
    of_bias += (derivative.t() @ counts).squeeze(1)
