"""Opening a finished model, whole with its head, to use it as it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_tiny_transformer.runs import UserError

from .checkpoint import _check_directory, _check_weights, _read_tokenizer, _short, _weights_message


@dataclass(frozen=True)
class FinishedModel:
    """In evaluation mode, fp32, on the GPU if there is one; `max_length` counts tokens."""

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int


def read_config(source: str) -> PreTrainedConfig:
    """The config of a directory or Hub model.

    Raises:
        UserError: it is missing or broken, or the Hub can't be reached.
    """
    _check_directory(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # transformers and huggingface_hub each bring their own types
        if Path(source).is_dir():
            raise UserError(f"{Path(source) / 'config.json'}: {_short(error)}; mend the field") from None
        raise UserError(
            f"--model {source}: neither a directory here nor a model that can be read from the Hub "
            f"({_short(error)}); check the name and the network"
        ) from None


def open_model(source: str, config: PreTrainedConfig, auto_class: type, *, from_scratch: bool = False) -> FinishedModel:
    """The model that `auto_class` makes of `source`, or with `from_scratch` the same with fresh weights (seed 0).

    Raises:
        UserError: files are missing or broken, do not belong together, or lack the head that `auto_class` is for.
    """
    tokenizer = _read_tokenizer(source, config)
    set_seed(0)
    try:
        if from_scratch:
            model, info = auto_class.from_config(config, dtype=torch.float32, trust_remote_code=False), None
        else:
            model, info = auto_class.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # refused below, in words
                output_loading_info=True,
                trust_remote_code=False,
            )
    except Exception as error:
        raise UserError(_weights_message(source, error)) from None
    if info is not None:
        _check_weights(source, model, info)
        absent = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
        if absent:
            raise UserError(
                f"--model {source}: its files lack {absent[0]}, which {type(model).__name__} needs; "
                "name a model that was trained for this"
            )
    limit = min(getattr(config, "max_position_embeddings", None) or 10**9, tokenizer.model_max_length)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return FinishedModel(source, model.to(device).eval(), tokenizer, limit)
