"""The model at the start of a run."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

from hf_tiny_transformer.common.errors import UserError, first_line

from . import varlen
from .data.embeddings import initial_embeddings, start_positions
from .data.prepare import PreparedData
from .initial import InitialModel
from .recipe import CONFIG_CLASSES, Recipe

AUTO_CLASSES = {
    "mlm": AutoModelForMaskedLM,
    "mlm_nsp": AutoModelForPreTraining,
    "next_token": AutoModelForCausalLM,
    "span_corruption": AutoModelForSeq2SeqLM,
}
TOKENS = {  # whose ids are in the config
    "encoder": ("pad", "cls", "sep"),
    "bert": ("pad",),
    "decoder": ("pad", "bos", "eos"),
    "seq2seq": ("pad", "bos", "eos"),
}


def build_model(
    recipe: Recipe, data: PreparedData, *, seed: int, initial: InitialModel | None = None, attention: str | None = None
) -> PreTrainedModel:
    """Return the initial model, or a new one of the recipe's family; all processes call this, after seeding.

    Raises:
        UserError: The attention implementation is not installed, or does not work with this model.
    """
    auto_class = AUTO_CLASSES[recipe.objective]
    if initial is not None:
        mapping = auto_class._model_mapping
        model = initial.load(mapping[type(initial.config)], seed)  # type: ignore[index]  # None in the base class only
    else:
        tokens = {f"{name}_token_id": getattr(data.tokenizer, f"{name}_token_id") for name in TOKENS[recipe.family]}
        if recipe.family == "seq2seq":
            tokens["decoder_start_token_id"] = tokens["bos_token_id"]
        config = CONFIG_CLASSES[recipe.family](**recipe.model, vocab_size=len(data.tokenizer), **tokens)
        model = auto_class.from_config(config)
        if recipe.embedding_init == "cooccurrence":
            vectors = torch.from_numpy(initial_embeddings(data, config.hidden_size))
            known = vectors.abs().sum(dim=1) > 0
            with torch.no_grad():
                model.get_input_embeddings().weight[known] = vectors[known]
        if recipe.position_init == "sinusoidal":
            start_positions(model)
    can_varlen = varlen.is_possible(model, packs_documents=recipe.objective in ("mlm", "next_token"))
    if attention is None:
        attention = varlen.NAME if can_varlen else "sdpa"
    if attention == varlen.NAME and not can_varlen:
        raise UserError(
            f"--attention {attention}: needs torch 2.10, a GPU with bf16, objective mlm or next_token, and a model "
            "without attention dropout; use sdpa"
        )
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        raise UserError(f"--attention {attention}: {first_line(error)}") from None
    return model
