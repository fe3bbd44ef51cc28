"""The Encoder on images: patches replace token embeddings; the blocks are the Encoder's."""

from typing import Unpack

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_image import TinyTransformerEncoderImageConfig
from .heads import ClassifierHead
from .layers import ForwardKwargs
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
        """Embed the patches, row by row: (B, C, image_size, image_size) -> (B, patches, hidden_size).

        Raises:
            ValueError: If the images do not have the shape in the config.
        """
        shape = tuple(pixel_values.shape[1:])
        if shape != self.expected:
            raise ValueError(f"pixel_values: expected images of shape {self.expected}, got {shape}")
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class TinyTransformerEncoderImagePreTrainedModel(TinyTransformerEncoderPreTrainedModel):
    """Base class of the family: config and inputs."""

    config: TinyTransformerEncoderImageConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]


class TinyTransformerEncoderImageModel(TinyTransformerEncoderImagePreTrainedModel, TinyTransformerEncoderModel):
    """Encoder trunk on patches: one contextual vector per patch."""

    def token_embeddings(self) -> nn.Module:
        """Build the patch embedding."""
        return PatchEmbedding(self.config)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[ForwardKwargs]) -> BaseModelOutput:
        """Encode images (B, C, image_size, image_size)."""
        return super().forward(inputs_embeds=self.embed_tokens(pixel_values), **kwargs)


class TinyTransformerEncoderForImageClassification(ClassifierHead, TinyTransformerEncoderImagePreTrainedModel):
    """Encoder on patches with a classifier on the pooled image."""

    accepts_loss_kwargs = False  # see heads.py

    def __init__(self, config: TinyTransformerEncoderImageConfig):
        trunk, transform = TinyTransformerEncoderImageModel(config), prediction_head(config)
        super().__init__(config, trunk, transform, config.classifier_dropout)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Unpack[ForwardKwargs]
    ) -> ImageClassifierOutput:
        """Classify images (B, C, image_size, image_size) with `labels` (B,): logits (B, num_labels)."""
        outputs = self.model(pixel_values, **kwargs)
        logits = self.classifier(self.dropout(self.transform(self.pool(outputs, attention_mask=None))))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
