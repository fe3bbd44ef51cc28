"""The task heads that encoder families share: each mixin holds one forward; the family's file builds the modules.

A family's class provides `self.model` (the trunk), `self.transform` (features for the output, possibly the identity),
`self.dropout`, the output layer, and `self.pool(outputs, attention_mask)` for one vector per text. All forwards take
`token_type_ids`, so that `Trainer` passes them on; a trunk without token types ignores them.

`accepts_loss_kwargs = False` stands where the loss is a plain mean over the batch: `Trainer` would otherwise infer from
**kwargs that the model divides by the count of a whole accumulated batch, and not divide itself.
"""

from typing import Unpack

import torch
from torch.nn.functional import cross_entropy
from transformers.modeling_outputs import (
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import TransformersKwargs, can_return_tuple

from .layers import gather_targets
from .token_loss import predict_tokens


class MaskedLMForward:
    """Masked-token prediction (Devlin et al. 2018, section 3.1)."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        target_positions: torch.LongTensor | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Args:
        labels: (B, T) token ids, -100 where nothing is to be predicted; with `target_positions` (N,) ids.
        target_positions: (N,) indices into the flattened B * T tokens; the head then runs on these only and `logits` is
            (N, vocab_size) instead of (B, T, vocab_size).
        skip_logits: the loss only: faster, and the logits are never all in memory.
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


class SequenceClassificationForward:
    """One label, several labels or one number per text."""

    accepts_loss_kwargs = False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Args:
        labels: (B,) class ids; (B,) floats for regression (num_labels 1); (B, num_labels) floats for multi-label.
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


class TokenClassificationForward:
    """One label per token (named entities, parts of speech)."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Args:
        labels: (B, T) class ids, -100 where a token has none (special tokens, later pieces of a word).
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


class QuestionAnsweringForward:
    """Start and end of an answer in the text."""

    accepts_loss_kwargs = False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """Args:
        start_positions, end_positions: (B,) token indices; one outside the text is ignored.
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


class MultipleChoiceForward:
    """Which of C continuations fits: each is scored as a text of its own."""

    accepts_loss_kwargs = False

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """Args:
        input_ids, attention_mask, position_ids: (B, C, T); inputs_embeds: (B, C, T, D).
        labels: (B,) index of the right choice.
        """
        num_choices = (input_ids if input_ids is not None else inputs_embeds).shape[1]

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
        logits = scores.view(-1, num_choices)
        loss = None if labels is None else cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
