# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Encoder that reads images."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_base import positive_field
from .configuration_encoder import TinyTransformerEncoderConfig


@strict
class TinyTransformerEncoderImageConfig(TinyTransformerEncoderConfig):
    """An Encoder whose tokens are the patches of a square image (Dosovitskiy et al. 2020); all else is the Encoder's.

    Args:
        image_size, patch_size: pixels along a side; patches neither overlap nor leave a rest.
        num_channels: 1 for grey, 3 for colour.
        max_position_embeddings: one for each patch; None works it out.
        vocab_size: inherited, and read by nothing: there are no words.
    """

    model_type = "tiny_transformer_encoder_image"

    image_size: int = positive_field(default=8)
    patch_size: int = positive_field(default=2)
    num_channels: int = positive_field(default=3)
    max_position_embeddings: int | None = None
    position_embedding_type: Literal["rotary", "sinusoidal", "learned", "none"] = "learned"

    def __post_init__(self, **kwargs) -> None:
        if self.max_position_embeddings is None:
            self.max_position_embeddings = (self.image_size // self.patch_size) ** 2
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Run by `@strict` after init and before saving."""
        super().validate_architecture()
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size}): "
                "patches cover the image"
            )
        patches = (self.image_size // self.patch_size) ** 2
        if self.max_position_embeddings < patches:
            raise ValueError(
                f"max_position_embeddings ({self.max_position_embeddings}): the image has {patches} patches"
            )
