"""Opening a finished model, whole with its head, to use it as it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_tiny_transformer.runs import UserError

from .model_files import LONGEST, check_weights, read_tokenizer, usable_length, weights_error


@dataclass(frozen=True)
class FinishedModel:
    """In evaluation mode, fp32, on the GPU if there is one; `max_length` counts tokens."""

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int


def open_model(
    source: str,
    config: PreTrainedConfig,
    auto_class: type,
    *,
    from_scratch: bool = False,
    max_length: int | None = None,
    default_length: int = LONGEST,
    trust_remote_code: bool = False,
) -> FinishedModel:
    """The model that `auto_class` makes of `source`, or with `from_scratch` the same with fresh weights (seed 0).

    Args:
        max_length, default_length: as `usable_length` takes them.
        trust_remote_code: run the code that the model's files name, if any.

    Raises:
        UserError: files are missing or broken, do not belong together, or lack the head that `auto_class` is for; or
            the model takes less than `max_length`.
    """
    tokenizer = read_tokenizer(source, config, trust_remote_code=trust_remote_code)
    length = usable_length(max_length, config, tokenizer, default=default_length)
    set_seed(0)
    try:
        if from_scratch:
            model, info = auto_class.from_config(config, dtype=torch.float32, trust_remote_code=trust_remote_code), None
        else:
            model, info = auto_class.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # refused below, in words
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
    except Exception as error:
        raise weights_error(source, error) from None
    if info is not None:
        check_weights(source, model, info)
        absent = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
        if absent:
            raise UserError(
                f"--model {source}: its files lack {absent[0]}, which {type(model).__name__} needs; "
                "name a model that was trained for this"
            )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return FinishedModel(source, model.to(device).eval(), tokenizer, length)
