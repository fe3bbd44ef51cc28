"""The Encoder family: pre-norm, no biases, rotary positions, gated GELU, embedding norm and final norm."""

from typing import Unpack

import torch
from transformers.modeling_outputs import BaseModelOutput, ModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .configuration_encoder import TinyTransformerEncoderConfig
from .heads import (
    MaskedLMHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from .layers import ForwardKwargs, mean_pool
from .masks import bidirectional_mask
from .trunk import TinyTransformerLayer, TinyTransformerTrunk, TinyTransformerTrunkPreTrainedModel, prediction_head


class TinyTransformerEncoderPreTrainedModel(TinyTransformerTrunkPreTrainedModel):
    """Base class of the family: config, pooling, recorded outputs."""

    config: TinyTransformerEncoderConfig
    _can_record_outputs = {"hidden_states": TinyTransformerLayer, "attentions": MultiHeadAttention}

    def pool(self, outputs: ModelOutput, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Average the real tokens or select the first one, according to `config.classifier_pooling`."""
        if self.config.classifier_pooling == "cls":
            return outputs["last_hidden_state"][:, 0]
        return mean_pool(outputs["last_hidden_state"], attention_mask)


class TinyTransformerEncoderModel(TinyTransformerTrunk, TinyTransformerEncoderPreTrainedModel):
    """Encoder trunk: one contextual vector per token. Every token attends to every other."""

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutput:
        """Encode texts; `token_type_ids` are ignored, and accepted because some tokenizers always return them."""
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        masks = {
            kind: bidirectional_mask(self.config, inputs_embeds, attention_mask, position_ids, kind)
            for kind in self.layer_types
        }
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0)
        hidden_states, position_embeddings = self.add_positions(inputs_embeds, position_ids)
        for layer in self.layers:
            kind = str(layer.layer_type)
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[kind],
                position_embeddings=position_embeddings[kind],
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class TinyTransformerEncoderForMaskedLM(MaskedLMHead, TinyTransformerEncoderPreTrainedModel):
    """Encoder with a tied language-model head."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config, TinyTransformerEncoderModel(config), prediction_head(config))


class TinyTransformerEncoderForSequenceClassification(
    SequenceClassificationHead, TinyTransformerEncoderPreTrainedModel
):
    """Encoder with a classifier or regressor on the pooled text."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        trunk, transform = TinyTransformerEncoderModel(config), prediction_head(config)
        super().__init__(config, trunk, transform, config.classifier_dropout)


class TinyTransformerEncoderForTokenClassification(TokenClassificationHead, TinyTransformerEncoderPreTrainedModel):
    """Encoder with a classifier on each token."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        trunk, transform = TinyTransformerEncoderModel(config), prediction_head(config)
        super().__init__(config, trunk, transform, config.classifier_dropout)


class TinyTransformerEncoderForQuestionAnswering(QuestionAnsweringHead, TinyTransformerEncoderPreTrainedModel):
    """Encoder with start and end scores per token."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config, TinyTransformerEncoderModel(config), prediction_head(config))


class TinyTransformerEncoderForMultipleChoice(MultipleChoiceHead, TinyTransformerEncoderPreTrainedModel):
    """Encoder with one score per choice."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        trunk, transform = TinyTransformerEncoderModel(config), prediction_head(config)
        super().__init__(config, trunk, transform, config.classifier_dropout)
