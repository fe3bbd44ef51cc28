"""The Encoder on images: patches replace token embeddings; the blocks are the Encoder's."""

from typing import Unpack

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_image import TinyTransformerEncoderImageConfig
from .modeling_encoder import TinyTransformerEncoderModel, TinyTransformerEncoderPreTrainedModel
from .trunk import prediction_head


class PatchEmbedding(nn.Module):
    """Cut an image into patches and project each to a vector (Dosovitskiy et al. 2020, equation 1)."""

    def __init__(self, config: TinyTransformerEncoderImageConfig):
        super().__init__()
        self.expected = (config.num_channels, config.image_size, config.image_size)
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Embed the patches, row by row.

        Args:
            pixel_values: (B, C, image_size, image_size).

        Returns:
            (B, patches, hidden_size).

        Raises:
            ValueError: If the images do not have the shape in the config.
        """
        if tuple(pixel_values.shape[1:]) != self.expected:
            raise ValueError(
                f"pixel_values: expected images of shape {self.expected}, got {tuple(pixel_values.shape[1:])}"
            )
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class TinyTransformerEncoderImagePreTrainedModel(TinyTransformerEncoderPreTrainedModel):
    """Base class of the family: config and inputs."""

    config: TinyTransformerEncoderImageConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)


class TinyTransformerEncoderImageModel(TinyTransformerEncoderImagePreTrainedModel, TinyTransformerEncoderModel):
    """Encoder trunk on patches: one contextual vector per patch."""

    def token_embeddings(self, config: TinyTransformerEncoderImageConfig) -> nn.Module:
        """Build the patch embedding."""
        return PatchEmbedding(config)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Encode images.

        Args:
            pixel_values: (B, C, image_size, image_size).
            kwargs: For the attention backend.

        Returns:
            `last_hidden_state` (B, patches, hidden_size).
        """
        return super().forward(inputs_embeds=self.embed_tokens(pixel_values), **kwargs)


class TinyTransformerEncoderForImageClassification(TinyTransformerEncoderImagePreTrainedModel):
    """Encoder on patches with a classifier on the pooled image."""

    accepts_loss_kwargs = False  # see heads.py

    def __init__(self, config: TinyTransformerEncoderImageConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TinyTransformerEncoderImageModel(config)
        self.transform = prediction_head(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (B, C, image_size, image_size), from the image processor.
            labels: (B,) class ids.
            kwargs: For the trunk and the loss.

        Returns:
            The loss if `labels` are given, and the logits (B, num_labels).
        """
        outputs = self.model(pixel_values, **kwargs)
        logits = self.classifier(self.dropout(self.transform(self.pool(outputs, attention_mask=None))))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
