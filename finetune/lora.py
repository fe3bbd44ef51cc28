"""Low-rank adapters (Hu et al. 2021, equation 3) by peft, merged into the weights before anything is saved."""

from __future__ import annotations

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel


def with_adapters(model: PreTrainedModel, rank: int) -> PeftModel:
    """Every linear layer of the trunk gets an adapter of `rank` (alpha 2 * rank) and is frozen otherwise; the head,
    and a pooler, which many checkpoints come without, are trained whole."""
    trunk = f"{model.base_model_prefix}." if model.base_model is not model else ""  # T5's model is its own trunk
    outside = {f"{trunk}pooler."}
    outside |= {f"{name}." for name, module in model.named_modules() if module is model.get_output_embeddings()}

    def in_head(name: str) -> bool:
        return not name.startswith(trunk) or f"{name}.".startswith(tuple(outside))

    targets = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and not in_head(name)
    ]
    head = [parameter for name, parameter in model.named_parameters() if in_head(name)]
    with warnings.catch_warnings():  # peft asks transformers by a name that is on its way out
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    for parameter in head:  # not peft's modules_to_save, which goes by the ends of names and finds others, too
        parameter.requires_grad_(True)
    return adapted


def merged(model: PeftModel) -> PreTrainedModel:
    """The model as it was built, with the adapters added to its weights."""
    return model.merge_and_unload()
