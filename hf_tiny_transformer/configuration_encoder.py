# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Encoder family."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_base import probability_field
from .configuration_trunk import TinyTransformerTrunkConfig


@strict
class TinyTransformerEncoderConfig(TinyTransformerTrunkConfig):
    """Bidirectional encoder. With rotary positions it computes what stock ModernBERT with full attention computes.

    Args:
        classifier_pooling: Vector of a text: the `mean` of its tokens or the first token (`cls`).
        kwargs: Fields of `TinyTransformerTrunkConfig`.
    """

    model_type = "tiny_transformer_encoder"

    classifier_dropout: float | int = probability_field(default=0.0)
    classifier_pooling: Literal["mean", "cls"] = "mean"
    cls_token_id: int | None = None
    sep_token_id: int | None = None
