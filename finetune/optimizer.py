"""AdamW's parameter groups: weight decay on matrices only, and a learning rate that falls from head to embeddings."""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch import nn

# `encoder.layer.3.` (BERT), `layers.3.` (ours, ModernBERT), `h.3.` (GPT-2), `block.3.` (T5)
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|block)\.(\d+)\.")


def parameter_groups(model: nn.Module, *, learning_rate: float, layer_decay: float, weight_decay: float) -> list[dict]:
    """Every trainable parameter once, grouped by (learning rate, weight decay) for a torch optimizer.

    With L layers the head and all that follows the last layer learn at `learning_rate`, layer i (0-based) at
    `learning_rate * layer_decay ** (L - i)`, the embeddings at `learning_rate * layer_decay ** (L + 1)`.
    """
    depths = parameter_depths(model)
    top = max(depths.values())
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = learning_rate * layer_decay ** (top - depths[name])
            groups[rate, weight_decay if parameter.ndim >= 2 else 0.0].append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def parameter_depths(model: nn.Module) -> dict[str, int]:
    """Depth of each parameter by name: 0 for embeddings, i + 1 for layer i, L + 1 for everything after the layers."""
    tables = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        for parameter, _ in module.named_parameters(recurse=False)
    }
    layers = {name: int(match[1]) for name, _ in model.named_parameters() if (match := _LAYER.search(name))}
    top = max(layers.values(), default=-1) + 2
    depths = {}
    for name, _ in model.named_parameters():
        if name in layers:
            depths[name] = layers[name] + 1
        else:
            depths[name] = 0 if name in tables or "embed" in name else top
    return depths


def adamw(groups: list[dict], learning_rate: float) -> tuple[type[torch.optim.Optimizer], dict]:
    """The pair that `Trainer(optimizer_cls_and_kwargs=...)` takes; the groups' own rates go before `learning_rate`."""
    return torch.optim.AdamW, {"params": groups, "lr": learning_rate, "fused": True}
