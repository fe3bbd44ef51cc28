"""The optimizers; a parameter's module decides which one trains it, never its name."""

from __future__ import annotations

import torch
from torch import nn

from .recipe import Recipe


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices of the linear layers, and all other parameters: embeddings, the output matrix, norms, biases.

    Every parameter is in exactly one of the lists.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    output = model.get_output_embeddings()
    not_hidden = embeddings | ({id(output.weight)} if output is not None else set())
    matrices = {
        id(m.weight): m.weight for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in not_hidden
    }
    rest = {id(p): p for p in model.parameters() if id(p) not in matrices}
    return list(matrices.values()), list(rest.values())


def build_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return one AdamW, or Muon (Jordan et al. 2024) for the matrices and AdamW for the rest.

    Each group has its peak learning rate under `peak_lr`; the schedule scales it.
    """
    matrices, rest = split_parameters(model)
    adamw_groups = [{"params": rest, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "muon":
        optimizers.append(
            torch.optim.Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay, momentum=0.95)
        )
    else:
        adamw_groups.append({"params": matrices, "weight_decay": recipe.weight_decay})
    optimizers.append(torch.optim.AdamW(adamw_groups, lr=recipe.learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rate(
    optimizers: list[torch.optim.Optimizer], factor: float, matrix_learning_rate: float | None = None
) -> float:
    """Set all rates to `factor` of their peak, which a stage may change for Muon; return AdamW's, which is logged."""
    for optimizer in optimizers:
        inner = getattr(optimizer, "optimizer", optimizer)  # inside Accelerate's wrapper
        is_muon = isinstance(inner, torch.optim.Muon)
        for group in optimizer.param_groups:
            peak = matrix_learning_rate if is_muon and matrix_learning_rate is not None else group["peak_lr"]
            group["lr"] = peak * factor
    return optimizers[-1].param_groups[0]["lr"]
