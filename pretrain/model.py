"""From recipe and data to what trains: model, optimizers, batches."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hf_tiny_transformer.runs import UserError

from .batches import BatchSource
from .embeddings import start_positions
from .initial import InitialModel
from .loop import TrainingLoop
from .objectives import make_objective
from .optimizer import build_optimizers
from .packing import open_packed
from .prepare import PreparedData, initial_embeddings
from .recipe import CONFIG_CLASSES, Recipe
from .tokenizer import vocabulary_facts
from .validation import MASK_RATE as VALIDATION_MASK_RATE
from .validation import SEED as VALIDATION_SEED

AUTO_CLASSES = {
    "mlm": AutoModelForMaskedLM,
    "mlm_nsp": AutoModelForPreTraining,
    "next_token": AutoModelForCausalLM,
    "span_corruption": AutoModelForSeq2SeqLM,
}


def build_model(
    recipe: Recipe, data: PreparedData, accelerator: Accelerator, initial: InitialModel | None = None
) -> PreTrainedModel:
    """The initial model; without one a fresh one of the recipe's family, sized for the tokenizer: tokens that
    the counts know start from them, learned positions as sinusoids."""
    if initial is not None:
        return initial.load(AUTO_CLASSES[recipe.objective]._model_mapping[type(initial.config)])
    config = CONFIG_CLASSES[recipe.family](**recipe.model, **_token_fields(recipe.family, data.tokenizer))
    model = AUTO_CLASSES[recipe.objective].from_config(config)
    if recipe.embedding_init == "cooccurrence":
        vectors = torch.from_numpy(initial_embeddings(data, model.config.hidden_size, accelerator))
        known = vectors.abs().sum(dim=1) > 0
        with torch.no_grad():
            model.get_input_embeddings().weight[known] = vectors[known]
    if recipe.position_init == "sinusoidal":
        start_positions(model)
    return model


def _token_fields(family: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The config fields that the tokenizer decides."""
    fields = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if family == "encoder":
        fields |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    if family in ("decoder", "seq2seq"):
        fields |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family == "seq2seq":
        fields["decoder_start_token_id"] = tokenizer.bos_token_id
    return fields


def build_loop(
    recipe: Recipe,
    data: PreparedData,
    accelerator: Accelerator,
    *,
    seed: int,
    max_steps: int,
    initial: InitialModel | None = None,
    attention: str = "sdpa",
) -> TrainingLoop:
    """Model, optimizers and batches, all from the seed; prepared for the devices at hand.

    Raises:
        UserError: what computes `attention` is not installed, or can't serve this model.
    """
    set_seed(seed)
    model = build_model(recipe, data, accelerator, initial)
    _set_attention(model, attention)
    optimizers = build_optimizers(model, recipe)
    model, *optimizers = accelerator.prepare(model, *optimizers)
    batches = batch_source(recipe, data, data.train_tokens, "training", seed, attention)
    return TrainingLoop(accelerator, model, optimizers, batches, recipe, max_steps)


def _set_attention(model: PreTrainedModel, attention: str) -> None:
    if attention.startswith("flash") and model.config.is_encoder_decoder:
        raise UserError(f"--attention {attention}: can't tell a Seq2Seq's packed documents apart; use sdpa")
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        raise UserError(f"--attention {attention}: {str(error).splitlines()[0]}") from None


def batch_source(
    recipe: Recipe, data: PreparedData, file: Path, what: str, seed: int, attention: str = "sdpa"
) -> BatchSource:
    """The batches of a file of packed tokens, named `what` in errors."""
    facts = vocabulary_facts(data.tokenizer)
    block_size = max(stage.block_size for stage in recipe.stages)
    packed = open_packed(file, len(data.tokenizer), facts.cls_id, block_size=block_size, what=what)
    masking = recipe.masking if what == "training" else "token"
    objective = make_objective(recipe.objective, packed, facts, masking=masking)
    return BatchSource(objective, seed=seed, single_row=attention.startswith("flash"))


def validation_batches(recipe: Recipe, data: PreparedData, attention: str = "sdpa") -> list[dict[str, torch.Tensor]]:
    """The same batches each time; few enough to keep."""
    source = batch_source(recipe, data, data.validation_tokens, "validation", VALIDATION_SEED, attention)
    block_size, size = recipe.stages[-1].block_size, recipe.micro_batch_size
    mask_rate = None if recipe.objective == "next_token" else VALIDATION_MASK_RATE
    return list(source.validation_batches(block_size, mask_rate=mask_rate, blocks=recipe.validation_blocks, size=size))
