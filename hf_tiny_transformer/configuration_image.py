# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Encoder on images."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_base import positive_field
from .configuration_encoder import TinyTransformerEncoderConfig


@strict
class TinyTransformerEncoderImageConfig(TinyTransformerEncoderConfig):
    """Encoder whose tokens are the patches of a square image (Dosovitskiy et al. 2020).

    The inherited `vocab_size` is not used.

    Args:
        image_size: Pixels per side of an image; a multiple of `patch_size`.
        patch_size: Pixels per side of a patch.
        num_channels: 1 = grey, 3 = colour.
        max_position_embeddings: At least the number of patches, which is the default.
        kwargs: Fields of `TinyTransformerEncoderConfig`.
    """

    model_type = "tiny_transformer_encoder_image"

    image_size: int = positive_field(default=8)
    patch_size: int = positive_field(default=2)
    num_channels: int = positive_field(default=3)
    max_position_embeddings: int | None = None  # type: ignore[assignment]  # an int after __post_init__
    position_embedding_type: Literal["rotary", "sinusoidal", "learned", "none"] = "learned"

    def __post_init__(self, **kwargs: object) -> None:
        if self.max_position_embeddings is None:
            self.max_position_embeddings = (self.image_size // self.patch_size) ** 2
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check fields against each other; `@strict` calls this after init and before saving."""
        super().validate_architecture()
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")
        patches = (self.image_size // self.patch_size) ** 2
        if self.max_position_embeddings is not None and self.max_position_embeddings < patches:
            raise ValueError(
                f"max_position_embeddings ({self.max_position_embeddings}) is too small: an image has {patches} patches"
            )
