# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration fields of the Encoder, the Decoder and Seq2Seq."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .configuration_base import TinyTransformerConfig, activation_field, positive_field, probability_field

LAYER_TYPES = FULL, SLIDING = ("full_attention", "sliding_attention")


@strict
class TinyTransformerTrunkConfig(TinyTransformerConfig):
    """Shape of a pre-norm trunk (`trunk.py`); base class of the families' configurations.

    Args:
        intermediate_size: Width of the gated feed-forward network, which has three matrices where BERT has two.
        position_embedding_type: `rotary` rotates queries and keys; `sinusoidal` and `learned` are added to the
            embeddings, as in the original Transformer and in BERT; with `none` an encoder ignores word order.
        rope_parameters: transformers' rotary settings; default: {"rope_type": "default", "rope_theta": 10000.0}. With
            keys from `LAYER_TYPES`, each layer type has its own settings.
        layer_types: "full_attention" or "sliding_attention" for each layer; default: full attention everywhere.
        local_attention: Width of the window W of sliding attention, as in stock ModernBERT: a token of an encoder sees
            W // 2 tokens on either side of itself, one of a decoder sees W // 2 tokens that end with itself.
    """

    vocab_size: int = positive_field(default=8192)
    hidden_size: int = positive_field(default=256)
    num_hidden_layers: int = positive_field(default=4)
    num_attention_heads: int = positive_field(default=4)
    intermediate_size: int = positive_field(default=512)
    hidden_act: str = activation_field(default="gelu")
    max_position_embeddings: int = positive_field(default=1024)
    position_embedding_type: Literal["rotary", "sinusoidal", "learned", "none"] = "rotary"
    rope_parameters: dict | None = None
    layer_types: list[str] | None = None
    local_attention: int = positive_field(default=128)
    initializer_range: float = probability_field(default=0.02)
    norm_eps: float = positive_field(default=1e-5)
    embedding_dropout: float | int = probability_field(default=0.0)
    attention_dropout: float | int = probability_field(default=0.0)
    mlp_dropout: float | int = probability_field(default=0.0)
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.layer_types is None:
            self.layer_types = [FULL] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    @property
    def sliding_window(self) -> int | None:
        """Return half the window, as transformers' masks and caches read it, or None if no layer has a window."""
        return self.local_attention // 2 if SLIDING in (self.layer_types or ()) else None

    @sliding_window.setter
    def sliding_window(self, window: int | None) -> None:
        if window is not None:
            self.local_attention = 2 * window

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict:
        """Complete the rotary settings; transformers calls this after init."""
        of_types = self.rope_parameters or {}
        if not set(LAYER_TYPES) & set(of_types):
            return super().convert_rope_params_to_dict(**kwargs)
        for settings in of_types.values():
            settings.setdefault("rope_theta", self.default_theta)
        self.standardize_rope_params()
        return kwargs

    def validate_architecture(self) -> None:
        """Check fields against each other; `@strict` calls this after init and before saving."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if self.position_embedding_type == "rotary" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                "rotary positions rotate pairs of features: hidden_size / num_attention_heads must be even"
            )
        if self.position_embedding_type == "sinusoidal" and self.hidden_size % 2:
            raise ValueError("sinusoidal positions require an even hidden_size")
        layer_types = self.layer_types or []
        lengths_differ = SLIDING in layer_types and len(layer_types) != self.num_hidden_layers
        if lengths_differ or set(layer_types) - set(LAYER_TYPES):
            raise ValueError(
                f"layer_types ({layer_types}) must hold one of {', '.join(LAYER_TYPES)} for each of the "
                f"{self.num_hidden_layers} layers"
            )
        if SLIDING in layer_types and self.local_attention < 4:  # transformers' cache would keep too much
            raise ValueError(f"local_attention ({self.local_attention}) must be at least 4")
        for layer_type in LAYER_TYPES:
            rope = (self.rope_parameters or {}).get(layer_type, self.rope_parameters) or {}
            if set(LAYER_TYPES) & set(rope):
                raise ValueError(f"rope_parameters: {layer_type!r} is missing; the other layer type has settings")
            rope_type = rope.get("rope_type", "default")
            if rope_type != "default" and rope_type not in ROPE_INIT_FUNCTIONS:  # transformers only warns
                raise ValueError(
                    f"rope_parameters: rope_type {rope_type!r} is not one of {sorted(ROPE_INIT_FUNCTIONS)}"
                )
