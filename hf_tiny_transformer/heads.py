"""Task models shared by the families: each class builds the modules of one task and defines its forward.

A family's class derives from one of these and from the family's `...PreTrainedModel`, and passes to `__init__` its
trunk, its transform (applied before the output layer) and the dropout rate before a classifier.

Every forward names `token_type_ids`, because `Trainer` drops columns that a forward does not name; trunks without token
types ignore them. `accepts_loss_kwargs = False` marks a loss that is a plain mean over the batch. Otherwise `Trainer`
would infer from **kwargs that the model divides by the count of the whole accumulated batch, and not divide itself.
"""

from typing import Unpack, cast

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from .layers import ForwardKwargs, TinyTransformerPreTrainedModel, gather_targets
from .token_loss import predict_tokens


class MaskedLMHead(TinyTransformerPreTrainedModel):
    """Masked-token prediction with a tied output matrix (Devlin et al. 2018, section 3.1)."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: PreTrainedConfig, trunk: TinyTransformerPreTrainedModel, transform: nn.Module):
        super().__init__(config)
        self.model = trunk
        self.transform = transform
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
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
        target_positions: torch.Tensor | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> MaskedLMOutput:
        """Predict tokens: logits (B, T, vocab_size).

        `labels` are (B, T) token ids, -100 = ignored. `target_positions` (N,) are indices into the flattened B * T
        tokens: the head runs on these only, with logits (N, vocab_size) and labels (N,). `skip_logits` computes the
        loss only, which is faster and never holds all logits in memory.
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
        loss, logits = predict_tokens(self, features, labels, skip_logits=skip_logits, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ClassifierHead(TinyTransformerPreTrainedModel):
    """Modules of the three classifiers below, which differ in what they classify."""

    def __init__(
        self,
        config: PreTrainedConfig,
        trunk: TinyTransformerPreTrainedModel,
        transform: nn.Module,
        dropout: float,
        num_outputs: int | None = None,
    ):
        super().__init__(config)
        self.num_labels = cast(int, config.num_labels)  # None only before the config's __post_init__
        self.model = trunk
        self.transform = transform
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, num_outputs or self.num_labels)
        self.post_init()


class SequenceClassificationHead(ClassifierHead):
    """Classification or regression of whole texts, on one pooled vector per text."""

    accepts_loss_kwargs = False

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
    ) -> SequenceClassifierOutput:
        """Classify texts: logits (B, num_labels).

        `labels` are (B,) class ids, (B,) floats for regression (num_labels 1), or (B, num_labels) floats for several
        labels per text.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.classifier(self.dropout(self.transform(self.pool(outputs, attention_mask))))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class TokenClassificationHead(ClassifierHead):
    """Classification of tokens (named entities, parts of speech)."""

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
    ) -> TokenClassifierOutput:
        """Classify tokens: logits (B, T, num_labels).

        `labels` are (B, T) class ids, -100 = ignored (special tokens, all but the first token of a word).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.classifier(self.dropout(self.transform(outputs.last_hidden_state)))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, config=self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class QuestionAnsweringHead(TinyTransformerPreTrainedModel):
    """Extraction of an answer: start and end scores per token."""

    accepts_loss_kwargs = False

    def __init__(self, config: PreTrainedConfig, trunk: TinyTransformerPreTrainedModel, transform: nn.Module):
        super().__init__(config)
        self.model = trunk
        self.transform = transform
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> QuestionAnsweringModelOutput:
        """Score each token as the start and as the end of the answer: two logits (B, T).

        `start_positions` and `end_positions` are (B,) token indices; an index outside the text is ignored.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        start_logits, end_logits = self.qa_outputs(self.transform(outputs.last_hidden_state)).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MultipleChoiceHead(ClassifierHead):
    """Choice between C continuations: each is scored as a text of its own, on its pooled vector."""

    accepts_loss_kwargs = False

    def __init__(
        self, config: PreTrainedConfig, trunk: TinyTransformerPreTrainedModel, transform: nn.Module, dropout: float
    ):
        super().__init__(config, trunk, transform, dropout, num_outputs=1)

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
    ) -> MultipleChoiceModelOutput:
        """Score the choices: logits (B, C).

        `input_ids` are (B, C, T), and all other inputs have the same second axis. `labels` (B,) index the choices.

        Raises:
            ValueError: If both or neither of `input_ids` and `inputs_embeds` are given.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None:
            raise ValueError("pass exactly one of input_ids and inputs_embeds")

        def merge(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.flatten(0, 1)

        attention_mask = merge(attention_mask)
        outputs = self.model(
            input_ids=merge(input_ids),
            attention_mask=attention_mask,
            token_type_ids=merge(token_type_ids),
            position_ids=merge(position_ids),
            inputs_embeds=merge(inputs_embeds),
            **kwargs,
        )
        scores = self.classifier(self.dropout(self.transform(self.pool(outputs, attention_mask))))
        logits = scores.view(-1, given.shape[1])
        loss = None if labels is None else cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
