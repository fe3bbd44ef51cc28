# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Decoder family."""

from huggingface_hub.dataclasses import strict

from .configuration_base import probability_field
from .configuration_trunk import TinyTransformerTrunkConfig


@strict
class TinyTransformerDecoderConfig(TinyTransformerTrunkConfig):
    """A causal language model made of the Encoder's blocks; with `rotary` positions it is the function that stock
    ModernBertDecoder with full attention computes. The fields of its shape are in `TinyTransformerTrunkConfig`.

    Args:
        use_cache: keep keys and values while generating, so that each new token costs one position.
    """

    model_type = "tiny_transformer_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]
    # tensor parallelism: each process holds some heads and some columns of the MLP, and their sums are added up
    base_model_tp_plan = {
        "layers.*.attention.q_proj": "colwise",
        "layers.*.attention.k_proj": "colwise",
        "layers.*.attention.v_proj": "colwise",
        "layers.*.attention.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    classifier_dropout: float | int = probability_field(default=0.0)
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
