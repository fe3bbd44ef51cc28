"""Opening any checkpoint that the task's Auto class knows, with errors that a user can act on."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_tiny_transformer import foreign_code
from hf_tiny_transformer.runs import UserError

from .kinds.base import Kind
from .model_files import check_weights, read_config, read_tokenizer, usable_length, weights_error

DROPOUT_FIELDS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "classifier_dropout",
)


@dataclass(frozen=True)
class Checkpoint:
    """A model to fine-tune: `config` already carries the task's labels and the dropout; `max_length` counts tokens."""

    source: str
    auto_class: type
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    max_length: int


def open_checkpoint(
    source: str, kind: Kind, *, dropout: float | None, max_length: int | None, trust_remote_code: bool = False
) -> Checkpoint:
    """Reads config and tokenizer of a directory or Hub model; the weights are read by `build_model`.

    Args:
        trust_remote_code: run the code of config and tokenizer, if their files name any. None of it goes along with
            what is trained, which has to open without it: the model's class must be one of transformers or ours.

    Raises:
        UserError: missing, unreadable or inconsistent files, an unknown model type, an unreachable Hub id.
    """
    config = read_config(source, trust_remote_code=trust_remote_code, **kind.config_fields())
    if type(config).__module__.startswith("transformers_modules."):
        raise UserError(
            f"--model {source}: config.json's auto_map makes it a model with code of its own, which a fine-tuned one "
            "could not carry; name a model of transformers or of this package (predict and blimp run such code)"
        )
    foreign_code.strip_loaded(source, config=config)
    if type(config) not in kind.auto_class._model_mapping:  # register() extends this mapping too
        raise UserError(
            f"--model {source}: config.json's model_type {config.model_type!r} has no head for this task; "
            f"name a model that {kind.auto_class.__name__} opens"
        )
    tokenizer = read_tokenizer(source, config, trust_remote_code=trust_remote_code)
    if dropout is not None:
        for name in DROPOUT_FIELDS:
            if hasattr(config, name):
                setattr(config, name, dropout)
    length = usable_length(max_length, config, tokenizer, default=kind.default_max_length)
    return Checkpoint(source, kind.auto_class, config, tokenizer, length)


def build_model(checkpoint: Checkpoint, seed: int, *, from_scratch: bool) -> PreTrainedModel:
    """The fp32 model; `seed` decides the fresh weights: those of the head, or all of them with `from_scratch`.

    Raises:
        UserError: the weights are unreadable or do not belong to the config.
    """
    set_seed(seed)
    config = copy.deepcopy(checkpoint.config)
    try:
        if from_scratch:
            return checkpoint.auto_class.from_config(config, dtype=torch.float32, trust_remote_code=False)
        model, info = checkpoint.auto_class.from_pretrained(
            checkpoint.source,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # a head for other labels may go; anything else is refused below
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:  # safetensors, torch, transformers and huggingface_hub each bring their own types
        raise weights_error(checkpoint.source, error) from None
    check_weights(checkpoint.source, model, info)
    return model
