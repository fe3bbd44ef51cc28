"""The Bert family: post-norm, learned positions, token types, a pooler, masked-LM and next-sentence heads."""

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput, NextSentencePredictorOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .configuration_bert import TinyTransformerBertConfig
from .heads import (
    MaskedLMHead,
    MultipleChoiceHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from .layers import ForwardKwargs, PredictionHead, TinyTransformerPreTrainedModel, gather_targets
from .masks import AttentionMask, bidirectional_mask
from .token_loss import IGNORED, predict_tokens


class TinyTransformerBertMLP(nn.Module):
    """down(act(up(x))), both with a bias."""

    def __init__(self, config: TinyTransformerBertConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (B, T, hidden_size) to (B, T, hidden_size)."""
        return self.down_proj(self.act(self.up_proj(hidden_states)))


class TinyTransformerBertLayer(GradientCheckpointingLayer):
    """norm(x + attention(x)), then norm(x + mlp(x)): post-norm, as in the original Transformer."""

    def __init__(self, config: TinyTransformerBertConfig, layer_idx: int):
        super().__init__()
        self.attention = MultiHeadAttention(config, layer_idx, bias=True, dropout=config.attention_probs_dropout_prob)
        self.attention_norm = _norm(config)
        self.mlp = TinyTransformerBertMLP(config)
        self.mlp_norm = _norm(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: AttentionMask = None, **kwargs: object
    ) -> torch.Tensor:
        """Map (B, T, hidden_size) to (B, T, hidden_size), with a mask from `masks.py`."""
        attended, _ = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attended))
        return self.mlp_norm(hidden_states + self.dropout(self.mlp(hidden_states)))


class TinyTransformerBertPooler(nn.Module):
    """tanh(dense(first token))."""

    def __init__(self, config: TinyTransformerBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (B, T, hidden_size) to (B, hidden_size)."""
        return torch.tanh(self.dense(hidden_states[:, 0]))


class TinyTransformerBertPreTrainedModel(TinyTransformerPreTrainedModel):
    """Base class of the family: config, pooling, recorded outputs; transformers initialises the weights (normal)."""

    config: TinyTransformerBertConfig
    _no_split_modules = ["TinyTransformerBertLayer"]
    _can_record_outputs = {"hidden_states": TinyTransformerBertLayer, "attentions": MultiHeadAttention}

    def pool(self, outputs: ModelOutput, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Return the output of the pooler."""
        return outputs["pooler_output"]


class TinyTransformerBertModel(TinyTransformerBertPreTrainedModel):
    """BERT trunk: one contextual vector per token, and one pooled vector per text if `add_pooling_layer`."""

    def __init__(self, config: TinyTransformerBertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embed_token_types = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embed_norm = _norm(config)
        self.embed_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(TinyTransformerBertLayer(config, i) for i in range(config.num_hidden_layers))
        self.pooler = TinyTransformerBertPooler(config) if add_pooling_layer else None
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode texts; `token_type_ids` are 0 for the first segment (default) and 1 for the second.

        Raises:
            ValueError: If both or neither of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        mask = bidirectional_mask(self.config, inputs_embeds, attention_mask, position_ids)
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(position_ids)

        embeddings = inputs_embeds + self.embed_token_types(token_type_ids) + self.embed_positions(position_ids)
        hidden_states = self.embed_dropout(self.embed_norm(embeddings))
        for layer in self.layers:
            # Flash attention finds packed documents by position_ids.
            hidden_states = layer(hidden_states, attention_mask=mask, position_ids=position_ids, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=None if self.pooler is None else self.pooler(hidden_states)
        )


@dataclass
class TinyTransformerBertForPreTrainingOutput(ModelOutput):
    """Output of `TinyTransformerBertForPreTraining`; `loss` is the sum of both losses."""

    loss: torch.Tensor | None = None
    prediction_logits: torch.Tensor | None = None
    seq_relationship_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class TinyTransformerBertForPreTraining(TinyTransformerBertPreTrainedModel):
    """BERT with both pretraining heads: masked-token and next-sentence prediction."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: TinyTransformerBertConfig):
        super().__init__(config)
        self.loss_type = "ForMaskedLM"  # transformers would choose the causal loss by the class name, and shift labels
        self.model = TinyTransformerBertModel(config)
        self.transform = _prediction_head(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        next_sentence_label: torch.Tensor | None = None,
        num_sequences_in_batch: torch.Tensor | int | None = None,
        target_positions: torch.Tensor | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> TinyTransformerBertForPreTrainingOutput:
        """Predict tokens, and whether the second segment follows the first: logits (B, T, vocab_size) and (B, 2).

        `labels`, `target_positions` and `skip_logits` are as in `MaskedLMHead`. `next_sentence_label` (B,) is 0 if the
        second segment follows the first, and 1 if it is a random one; without it the loss is that of the tokens.

        For a part of an accumulated batch, `num_items_in_batch` is the number of targets of the whole batch, and
        `num_sequences_in_batch` its number of rows. Each loss is then the part's share, so that the losses of all parts
        add up. Without the number of rows, the next-sentence loss is exact only if rows have equal numbers of targets.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        features = self.transform(gather_targets(outputs.last_hidden_state, target_positions))
        loss, prediction_logits = predict_tokens(self, features, labels, skip_logits=skip_logits, **kwargs)
        seq_relationship_logits = self.seq_relationship(outputs.pooler_output)
        if loss is not None and labels is not None and next_sentence_label is not None:
            divisor = num_sequences_in_batch
            if divisor is None:
                divisor = next_sentence_label.numel()
                if (num_items := kwargs.get("num_items_in_batch")) is not None:
                    divisor = divisor * num_items / (labels != IGNORED).sum()
            next_sentence_loss = cross_entropy(
                seq_relationship_logits.float(), next_sentence_label.view(-1), reduction="sum"
            )
            loss = loss + next_sentence_loss / divisor
        return TinyTransformerBertForPreTrainingOutput(
            loss=loss,
            prediction_logits=prediction_logits,
            seq_relationship_logits=seq_relationship_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class TinyTransformerBertForNextSentencePrediction(TinyTransformerBertPreTrainedModel):
    """BERT with the next-sentence head. Logit 0: the second segment follows the first; logit 1: it is a random one."""

    accepts_loss_kwargs = False  # see heads.py

    def __init__(self, config: TinyTransformerBertConfig):
        super().__init__(config)
        self.model = TinyTransformerBertModel(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> NextSentencePredictorOutput:
        """Predict whether the second segment follows the first: logits (B, 2).

        `labels` (B,) are 0 if the second segment follows the first, and 1 if it is a random one.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.seq_relationship(outputs.pooler_output)
        return NextSentencePredictorOutput(
            loss=None if labels is None else cross_entropy(logits.float(), labels.view(-1)),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class TinyTransformerBertForMaskedLM(MaskedLMHead, TinyTransformerBertPreTrainedModel):
    """BERT with a tied language-model head."""

    _keys_to_ignore_on_load_unexpected = [r"^seq_relationship\.", r"^model\.pooler\."]  # of ForPreTraining

    def __init__(self, config: TinyTransformerBertConfig):
        trunk = TinyTransformerBertModel(config, add_pooling_layer=False)
        super().__init__(config, trunk, _prediction_head(config))


class TinyTransformerBertForSequenceClassification(SequenceClassificationHead, TinyTransformerBertPreTrainedModel):
    """BERT with a classifier or regressor on the pooled text."""

    def __init__(self, config: TinyTransformerBertConfig):
        super().__init__(config, TinyTransformerBertModel(config), nn.Identity(), _classifier_dropout(config))


class TinyTransformerBertForTokenClassification(TokenClassificationHead, TinyTransformerBertPreTrainedModel):
    """BERT with a classifier on each token."""

    def __init__(self, config: TinyTransformerBertConfig):
        trunk = TinyTransformerBertModel(config, add_pooling_layer=False)
        super().__init__(config, trunk, nn.Identity(), _classifier_dropout(config))


class TinyTransformerBertForQuestionAnswering(QuestionAnsweringHead, TinyTransformerBertPreTrainedModel):
    """BERT with start and end scores per token."""

    def __init__(self, config: TinyTransformerBertConfig):
        super().__init__(config, TinyTransformerBertModel(config, add_pooling_layer=False), nn.Identity())


class TinyTransformerBertForMultipleChoice(MultipleChoiceHead, TinyTransformerBertPreTrainedModel):
    """BERT with one score per choice."""

    def __init__(self, config: TinyTransformerBertConfig):
        super().__init__(config, TinyTransformerBertModel(config), nn.Identity(), _classifier_dropout(config))


def _norm(config: TinyTransformerBertConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def _prediction_head(config: TinyTransformerBertConfig) -> PredictionHead:
    return PredictionHead(config, bias=True, eps=config.layer_norm_eps)


def _classifier_dropout(config: TinyTransformerBertConfig) -> float:
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
