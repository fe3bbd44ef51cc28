# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Encoder family."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_base import probability_field
from .configuration_trunk import TinyTransformerTrunkConfig


@strict
class TinyTransformerEncoderConfig(TinyTransformerTrunkConfig):
    """A modern bidirectional encoder; with `rotary` positions it is the function that stock ModernBERT with full
    attention computes. The fields of its shape are in `TinyTransformerTrunkConfig`.

    Args:
        classifier_pooling: one vector per text is the `mean` of its tokens or the first one (`cls`).
    """

    model_type = "tiny_transformer_encoder"

    classifier_dropout: float | int = probability_field(default=0.0)
    classifier_pooling: Literal["mean", "cls"] = "mean"
    cls_token_id: int | None = None
    sep_token_id: int | None = None
