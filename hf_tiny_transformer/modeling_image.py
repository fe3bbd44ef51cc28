"""The Encoder reads images: patches instead of word embeddings, everything else the same blocks."""

from typing import Unpack

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .configuration_image import TinyTransformerEncoderImageConfig
from .modeling_encoder import TinyTransformerEncoderModel, TinyTransformerEncoderPreTrainedModel
from .trunk import prediction_head


class PatchEmbedding(nn.Module):
    """Cuts an image into patches and maps each to a vector: (B, C, image_size, image_size) -> (B, patches, D), row by
    row (Dosovitskiy et al. 2020, "An image is worth 16x16 words", equation 1)."""

    def __init__(self, config: TinyTransformerEncoderImageConfig):
        super().__init__()
        self.expected = (config.num_channels, config.image_size, config.image_size)
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size, bias=False
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Raises:
        ValueError: an image of another shape than the config's.
        """
        if tuple(pixel_values.shape[1:]) != self.expected:
            raise ValueError(f"an image of pixel_values is {tuple(pixel_values.shape[1:])}, not {self.expected}")
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class TinyTransformerEncoderImagePreTrainedModel(TinyTransformerEncoderPreTrainedModel):
    """Loading and saving of the family."""

    config: TinyTransformerEncoderImageConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)


class TinyTransformerEncoderImageModel(TinyTransformerEncoderImagePreTrainedModel, TinyTransformerEncoderModel):
    """The Encoder's trunk on patches: an image in, one contextual vector per patch out."""

    def token_embeddings(self, config: TinyTransformerEncoderImageConfig) -> nn.Module:
        """What stands where a text model looks its words up."""
        return PatchEmbedding(config)

    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """pixel_values (B, C, image_size, image_size) -> last_hidden_state (B, patches, hidden_size)."""
        return super().forward(inputs_embeds=self.embed_tokens(pixel_values), **kwargs)


class TinyTransformerEncoderForImageClassification(TinyTransformerEncoderImagePreTrainedModel):
    """The trunk on patches, pooled, with a classifier."""

    accepts_loss_kwargs = False  # a plain mean over the batch: see heads.py

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
        """Args:
        pixel_values: (B, C, image_size, image_size), as the image processor makes them.
        labels: (B,) class ids.
        """
        outputs = self.model(pixel_values, **kwargs)
        logits = self.classifier(self.dropout(self.transform(self.pool(outputs, attention_mask=None))))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
