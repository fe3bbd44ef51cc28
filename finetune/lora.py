"""Low-rank adapters (Hu et al. 2021, equation 3) by peft, merged into the weights before anything is saved."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


def with_adapters(model: PreTrainedModel, rank: int) -> PeftModel:
    """Every linear layer of the trunk gets an adapter of `rank` (alpha 2 * rank) and is frozen otherwise; the head,
    and a pooler, which many checkpoints come without, are trained whole."""
    trunk = model.base_model_prefix
    heads = [name for name, _ in model.named_children() if name != trunk]
    heads += [name for name, _ in model.named_modules() if name == f"{trunk}.pooler"]
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(f"{name}.".startswith(f"{head}.") for head in heads)
    ]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, modules_to_save=heads)
    return get_peft_model(model, config)


def merged(model: PeftModel) -> PreTrainedModel:
    """The model as it was built, with the adapters added to its weights."""
    return model.merge_and_unload()
