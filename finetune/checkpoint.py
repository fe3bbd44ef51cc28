"""Opening any checkpoint that the task's Auto class knows, with errors that a user can act on."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hf_tiny_transformer.runs import UserError

from .kinds.base import Kind

DEFAULT_MAX_LENGTH = 128
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


def open_checkpoint(source: str, kind: Kind, *, dropout: float | None, max_length: int | None) -> Checkpoint:
    """Reads config and tokenizer of a directory or Hub model; the weights are read by `build_model`.

    Raises:
        UserError: missing, unreadable or inconsistent files, an unknown model type, an unreachable Hub id.
    """
    _check_directory(source)
    config = _read_config(source, kind)
    tokenizer = _read_tokenizer(source, config)
    if dropout is not None:
        for name in DROPOUT_FIELDS:
            if hasattr(config, name):
                setattr(config, name, dropout)
    return Checkpoint(source, kind.auto_class, config, tokenizer, _usable_length(max_length, config, tokenizer))


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
        raise UserError(_weights_message(checkpoint.source, error)) from None
    _check_weights(checkpoint.source, model, info)
    return model


def _check_directory(source: str) -> None:
    path = Path(source)
    if path.is_file():
        raise UserError(f"--model {source}: is a file; name the directory that holds it")
    if path.is_dir():
        _check_config_file(path / "config.json")
    elif re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source) is None:  # what can't be a Hub id was meant as a path
        raise UserError(f"--model {source}: no such directory; name one that holds config.json, or a Hub id")


def _check_config_file(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --model needs config.json, model.safetensors and a tokenizer") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: broken JSON ({error.msg}); save the model again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read ({error}); save the model again") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{path}: no field model_type; save the model with save_pretrained")


def _read_config(source: str, kind: Kind) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **kind.config_fields())
    except Exception as error:
        if not Path(source).is_dir():
            first_line = str(error).strip().split("\n")[0]
            raise UserError(
                f"--model {source}: neither a directory here nor a model that can be read from the Hub "
                f"({first_line}); check the name and the network"
            ) from None
        raise UserError(f"{Path(source) / 'config.json'}: {_short(error)}; mend the field") from None
    if type(config) not in kind.auto_class._model_mapping:  # register() extends this mapping too
        raise UserError(
            f"--model {source}: config.json's model_type {config.model_type!r} has no head for this task; "
            f"name a model that {kind.auto_class.__name__} opens"
        )
    return config


def _read_tokenizer(source: str, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise UserError(
            f"--model {source}: its tokenizer can't be read ({_short(error)}); save it there again"
        ) from None
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= len(tokenizer.all_special_tokens):
        # Without tokenizer files transformers builds an empty tokenizer of the config's kind and says nothing.
        raise UserError(f"--model {source}: holds no tokenizer (tokenizer.json); save the model's tokenizer there")
    positions = getattr(config, "vocab_size", None)
    if positions is not None and max(vocabulary.values()) >= positions:
        raise UserError(
            f"--model {source}: the tokenizer's highest id is {max(vocabulary.values())}, but config.json's vocab_size "
            f"is {positions}; save the tokenizer that belongs to the model"
        )
    if tokenizer.pad_token is None:  # GPT-like models: padding is masked, so that any token will do
        if tokenizer.eos_token is None:
            raise UserError(f"--model {source}: its tokenizer has no pad_token; set one in tokenizer_config.json")
        tokenizer.pad_token = tokenizer.eos_token
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def _usable_length(wanted: int | None, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    limit = min(
        getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length, tokenizer.model_max_length
    )
    if wanted is not None and wanted > limit:
        raise UserError(f"--max_length {wanted}: this model takes at most {limit} tokens; choose at most {limit}")
    return wanted or min(DEFAULT_MAX_LENGTH, limit)


def _check_weights(source: str, model: PreTrainedModel, info: dict) -> None:
    """The head may be new (another task's, or none before); the trunk must come from the file, whole."""
    trunk = f"{model.base_model_prefix}."
    for key, in_file, in_model in sorted(info["mismatched_keys"]):
        if key.startswith(trunk):
            raise UserError(
                f"--model {source}: the weights do not match config.json: {key} is {tuple(in_file)} in the file and "
                f"{tuple(in_model)} by the config; use the config.json that was saved with these weights"
            )
    missing = sorted(key for key in info["missing_keys"] if key.startswith(trunk) and "pooler" not in key)
    if missing:
        raise UserError(
            f"--model {source}: config.json asks for {len(missing)} weights that its files lack (first: {missing[0]}); "
            "use the config.json that was saved with these weights"
        )
    known = set(model.state_dict())
    for key in sorted(info["unexpected_keys"]):
        twin = re.sub(r"\.\d+\.", ".0.", key)
        if twin != key and (twin in known or trunk + twin in known):
            raise UserError(
                f"--model {source}: its files hold {key}, a layer that config.json does not ask for; "
                "use the config.json that was saved with these weights"
            )


def _weights_message(source: str, error: Exception) -> str:
    directory = Path(source)
    if directory.is_dir() and not any(directory.glob("*.safetensors")) and not any(directory.glob("*.bin")):
        return f"{directory / 'model.safetensors'}: no such file; save the model there, or use --from_scratch"
    if type(error).__name__ == "SafetensorError":
        files = sorted(file.name for file in directory.glob("*.safetensors")) or ["model.safetensors"]
        return f"{directory / files[0]}: truncated or corrupt ({_short(error)}); copy or save the model again"
    return (
        f"--model {source}: can't be built ({type(error).__name__}: {_short(error)}); mend its config.json or weights"
    )


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
