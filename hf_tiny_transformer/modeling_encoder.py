"""The Encoder family: pre-norm, no biases, rotary positions, gated GELU, embedding and final norm."""

from typing import Unpack

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .configuration_encoder import TinyTransformerEncoderConfig
from .heads import (
    MaskedLMForward,
    MultipleChoiceForward,
    QuestionAnsweringForward,
    SequenceClassificationForward,
    TokenClassificationForward,
)
from .layers import mean_pool
from .masks import bidirectional_mask
from .trunk import (
    TinyTransformerLayer,
    TinyTransformerTrunk,
    TinyTransformerTrunkPreTrainedModel,
    prediction_head,
)


class TinyTransformerEncoderPreTrainedModel(TinyTransformerTrunkPreTrainedModel):
    """Loading and saving of the family."""

    config: TinyTransformerEncoderConfig
    _can_record_outputs = {"hidden_states": TinyTransformerLayer, "attentions": MultiHeadAttention}

    def pool(self, outputs: BaseModelOutput, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """One vector per text, (B, hidden_size), as `classifier_pooling` says."""
        if self.config.classifier_pooling == "cls":
            return outputs.last_hidden_state[:, 0]
        return mean_pool(outputs.last_hidden_state, attention_mask)


class TinyTransformerEncoderModel(TinyTransformerTrunk, TinyTransformerEncoderPreTrainedModel):
    """The trunk: token ids in, one contextual vector per token out. Every token sees every other."""

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,  # taken for callers that always send them; has no meaning here
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Args:
        input_ids: (B, T); or inputs_embeds (B, T, hidden_size).
        attention_mask: (B, T), 1 = real token, 0 = padding.
        position_ids: (B, T). Where they restart and no attention_mask is given, the row holds several documents and
            none sees its neighbour.
        """
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        mask = bidirectional_mask(self.config, inputs_embeds, attention_mask, position_ids)
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0)
        hidden_states, position_embeddings = self.add_positions(inputs_embeds, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states))


class TinyTransformerEncoderForMaskedLM(MaskedLMForward, TinyTransformerEncoderPreTrainedModel):
    """The trunk with a tied language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.model = TinyTransformerEncoderModel(config)
        self.transform = prediction_head(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        self.post_init()


class TinyTransformerEncoderForSequenceClassification(
    SequenceClassificationForward, TinyTransformerEncoderPreTrainedModel
):
    """The trunk, pooled, with a classifier or regressor."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TinyTransformerEncoderModel(config)
        self.transform = prediction_head(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class TinyTransformerEncoderForTokenClassification(TokenClassificationForward, TinyTransformerEncoderPreTrainedModel):
    """The trunk with one label per token."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TinyTransformerEncoderModel(config)
        self.transform = prediction_head(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class TinyTransformerEncoderForQuestionAnswering(QuestionAnsweringForward, TinyTransformerEncoderPreTrainedModel):
    """The trunk with start and end scores per token."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.model = TinyTransformerEncoderModel(config)
        self.transform = prediction_head(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


class TinyTransformerEncoderForMultipleChoice(MultipleChoiceForward, TinyTransformerEncoderPreTrainedModel):
    """The trunk, pooled, with one score per choice."""

    def __init__(self, config: TinyTransformerEncoderConfig):
        super().__init__(config)
        self.model = TinyTransformerEncoderModel(config)
        self.transform = prediction_head(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()
