# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Decoder family."""

from huggingface_hub.dataclasses import strict

from .configuration_base import probability_field
from .configuration_trunk import TinyTransformerTrunkConfig


@strict
class TinyTransformerDecoderConfig(TinyTransformerTrunkConfig):
    """Causal language model of the Encoder's blocks.

    With rotary positions it computes what stock ModernBertDecoder with full attention computes.

    Args:
        use_cache: Whether to keep keys and values during generation.
        kwargs: Fields of `TinyTransformerTrunkConfig`.
    """

    model_type = "tiny_transformer_decoder"
    keys_to_ignore_at_inference = ["past_key_values"]
    # Tensor parallelism: each process has some heads and MLP columns, and the outputs are summed.
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
