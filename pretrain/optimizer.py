"""The optimizers; a parameter's module decides which one trains it, never its name."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from .recipe import Recipe

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration (Jordan et al. 2024)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) with Nesterov momentum, all matrices of one shape at a time.

    Each update is that of `torch.optim.Muon`, bit for bit on a CPU. The number of kernels depends on the number of
    shapes, not of layers. Of a sharded matrix (FSDP2) each process orthogonalises the whole update and keeps its shard.
    """

    def __init__(self, params: Iterable[torch.Tensor], lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # Accelerate passes no closure
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            gradients = [_local(p.grad) for p in parameters]
            momenta = [_local(self.state[p]["momentum_buffer"]) for p in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_([_local(p) for p in parameters], 1 - group["lr"] * group["weight_decay"])
            by_shape: dict[torch.Size, list[int]] = defaultdict(list)
            for number, parameter in enumerate(parameters):
                by_shape[parameter.shape].append(number)
            for (rows, columns), numbers in by_shape.items():
                whole = torch.stack([_gathered(updates[n], parameters[n]) for n in numbers])
                orthogonal = orthogonalize(whole).to(whole.dtype).unbind()
                same_shape = [parameters[n] for n in numbers]
                shards = [_sharded_like(p, update) for p, update in zip(same_shape, orthogonal, strict=True)]
                rate = group["lr"] * math.sqrt(max(1, rows / columns))
                torch._foreach_add_([_local(p) for p in same_shape], shards, alpha=-rate)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Move the singular values of each matrix close to 1: (N, rows, columns), computed in bf16."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    if is_tall := x.size(1) > x.size(2):
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """Return this process's shard, the same memory; torch 2.11 cannot compute `_foreach_lerp` on sharded tensors."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gathered(shard: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the whole tensor of which this process has a shard, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return shard
    whole = DTensor.from_local(
        shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride(), run_check=False
    )
    return whole.full_tensor()


def _sharded_like(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a tensor that all processes have computed."""
    if not isinstance(parameter, DTensor):
        return whole
    return _local(distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None))


def split_parameters(model: PreTrainedModel) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
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


def build_optimizers(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return one AdamW, or Muon (Jordan et al. 2024) for the matrices and AdamW for the rest.

    Each group has its peak learning rate under `peak_lr`; the schedule scales it.
    """
    matrices, rest = split_parameters(model)
    adamw_groups = [{"params": rest, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "muon":
        optimizers.append(Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay))
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
        is_muon = isinstance(inner, Muon)
        for group in optimizer.param_groups:
            peak = matrix_learning_rate if is_muon and matrix_learning_rate is not None else group["peak_lr"]
            group["lr"] = peak * factor
    return optimizers[-1].param_groups[0]["lr"]
