"""DeepSpeed's ZeRO-2 under Accelerate: what its engine has to be told, and its state, whole and by parameter names."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from hf_tiny_transformer.runs import UserError

from .recipe import Recipe

STAGE = 2
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, the one optimizer that is sharded


def is_used(accelerator: Accelerator) -> bool:
    """Whether the run was launched with DeepSpeed."""
    return accelerator.distributed_type is DistributedType.DEEPSPEED


def configure(accelerator: Accelerator, recipe: Recipe) -> None:
    """Hands on to the engine what the loop does itself everywhere else: clipping, and passing over a step whose
    gradient is not finite.

    Raises:
        UserError: another stage than 2, or an optimizer that the engine can't shard.
    """
    stage = accelerator.state.deepspeed_plugin.zero_stage
    if stage != STAGE:
        raise UserError(
            f"DeepSpeed, zero_stage: {stage}: use {STAGE}; pretrain/launch/fsdp2.yaml shards the weights too"
        )
    if recipe.optimizer != "adamw":
        raise UserError(
            f"DeepSpeed, optimizer: {recipe.optimizer}: its engine takes one optimizer; add --optimizer adamw, "
            "or launch with pretrain/launch/zero2.yaml, which shards Muon too"
        )
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    config["train_micro_batch_size_per_gpu"] = recipe.micro_batch_size  # only its own reports go by it
    config["gradient_clipping"] = recipe.gradient_clip
    config["bf16"]["check_grad_overflow"] = True


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict, with fp32 masters where the model itself trains in bf16. Every process has to call it."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights, seen = dict(model.state_dict()), {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in seen:
            seen[id(parameter)] = safe_get_full_fp32_param(parameter).cpu()
        weights[name] = seen[id(parameter)]
    return weights


def place_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Into the model and into each process's share of the fp32 masters."""
    from deepspeed.utils import safe_set_full_fp32_param

    model.load_state_dict(weights)
    for name, parameter in model.named_parameters():
        safe_set_full_fp32_param(parameter, weights[name].to(parameter.device, torch.float32))


def whole_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """As `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict` gives it. Every process has to call it."""
    from deepspeed.utils import safe_get_full_optimizer_state

    _link(optimizer)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state, groups = {}, []
    for group, parameters, share in _groups(optimizer):
        groups.append({**group, "params": [names[id(parameter)] for parameter in parameters]})
        for parameter in parameters:
            moments = {key: safe_get_full_optimizer_state(parameter, key).cpu() for key in MOMENTS}
            state[names[id(parameter)]] = {"step": optimizer.state[share]["step"].cpu().clone(), **moments}
    return {"state": state, "param_groups": groups}


def place_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Its counterpart."""
    from deepspeed.utils import safe_set_full_optimizer_state

    (step,) = {float(saved["step"]) for saved in state["state"].values()}
    for _, _, share in _groups(optimizer):  # AdamW would make them at its first step only
        moments = {key: torch.zeros_like(share) for key in MOMENTS}
        optimizer.state[share] = {"step": torch.tensor(step, device=share.device), **moments}
    _link(optimizer)
    for name, parameter in model.named_parameters():
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, state["state"][name][key].to(parameter.device), key)


def _groups(optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict, list[nn.Parameter], torch.Tensor]]:
    """(settings, the model's parameters, this process's share of them: flat, fp32) of each parameter group."""
    return zip(optimizer.param_groups, optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True)


def _link(optimizer: torch.optim.Optimizer) -> None:
    """Lets the parameters of every group find their moments; the engine (0.19) does so for the first group alone."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    for _, parameters, share in _groups(optimizer):
        lazy_init_hp_params_optimizer_state(parameters, share, optimizer.state)
