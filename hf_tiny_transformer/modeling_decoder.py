"""The Decoder family: the Encoder's blocks, each token blind to what comes after it, with a cache and `generate`."""

from typing import Unpack

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import TransformersKwargs, can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .configuration_decoder import TinyTransformerDecoderConfig
from .heads import SequenceClassificationForward
from .layers import gather_targets, last_token
from .masks import causal_mask
from .token_loss import IGNORED, predict_tokens
from .trunk import (
    TinyTransformerLayer,
    TinyTransformerTrunk,
    TinyTransformerTrunkPreTrainedModel,
    prediction_head,
)


class TinyTransformerDecoderPreTrainedModel(TinyTransformerTrunkPreTrainedModel):
    """Loading and saving of the family."""

    config: TinyTransformerDecoderConfig
    _skip_keys_device_placement = ["past_key_values"]
    _can_record_outputs = {"hidden_states": TinyTransformerLayer, "attentions": MultiHeadAttention}

    def pool(
        self, outputs: BaseModelOutputWithPastAndCrossAttentions, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """One vector per text, (B, hidden_size): the last real token's, the only one that has seen the whole text."""
        return last_token(outputs.last_hidden_state, attention_mask)


class TinyTransformerDecoderModel(TinyTransformerTrunk, TinyTransformerDecoderPreTrainedModel):
    """The trunk: token ids in, one vector per token out, made of that token and those before it."""

    def __init__(self, config: TinyTransformerDecoderConfig, **kwargs):
        super().__init__(config, is_causal=True, **kwargs)

    def new_cache(self) -> Cache:
        """An empty cache of keys and values."""
        return DynamicCache(config=self.config)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        token_type_ids: torch.LongTensor | None = None,  # taken for callers that always send them; has no meaning here
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Args:
        input_ids: (B, T); or inputs_embeds (B, T, hidden_size).
        attention_mask: (B, past + T), 1 = real token, 0 = padding.
        position_ids: (B, T). Where they restart and neither attention_mask nor past_key_values are given, the row
            holds several documents and none sees its neighbour.
        past_key_values: keys and values of the tokens before these; where none is given and `use_cache` says so, a
            new cache comes out (not while training).
        """
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        mask = causal_mask(self.config, inputs_embeds, attention_mask, position_ids, past_key_values)
        if past_key_values is None and use_cache and not self.training:
            past_key_values = self.new_cache()
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
        hidden_states, position_embeddings = self.add_positions(inputs_embeds, position_ids)
        encoder_hidden_states = kwargs.pop("encoder_hidden_states", None)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                mask,
                encoder_hidden_states,  # by position: reentrant checkpointing carries no gradient to keywords
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )


class TinyTransformerDecoderForCausalLM(TinyTransformerDecoderPreTrainedModel, GenerationMixin):
    """The trunk with a tied language-model head: the next token of every position."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: TinyTransformerDecoderConfig):
        super().__init__(config)
        self.model = TinyTransformerDecoderModel(config)
        self.transform = prediction_head(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        target_positions: torch.LongTensor | None = None,
        skip_logits: bool = False,
        token_type_ids: torch.LongTensor | None = None,  # named, since `generate` refuses what a forward does not name
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Args:
        labels: (B, T) token ids, -100 where nothing is to be predicted; position t is compared with label t + 1, so
            the input ids themselves serve. With `target_positions` (N,) ids, compared as they are.
        logits_to_keep: compute the last so many positions only, 0 for all; or the positions themselves.
        target_positions: (N,) indices into the flattened B * T tokens; the head then runs on these only and `logits` is
            (N, vocab_size) instead of (B, T, vocab_size).
        skip_logits: the loss only: faster, and the logits are never all in memory.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            token_type_ids=token_type_ids,
            **kwargs,
        )
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        features = self.transform(gather_targets(hidden_states, target_positions))
        if labels is not None:
            if target_positions is None:  # a caller under sequence parallelism has shifted them already
                shifted = kwargs.get("shift_labels")
                labels = pad(labels[..., 1:], (0, 1), value=IGNORED) if shifted is None else shifted
            kwargs["shift_labels"] = labels
        loss, logits = predict_tokens(self, features, labels, skip_logits=skip_logits, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class TinyTransformerDecoderForSequenceClassification(
    SequenceClassificationForward, TinyTransformerDecoderPreTrainedModel
):
    """The trunk with a classifier or regressor on the last token."""

    def __init__(self, config: TinyTransformerDecoderConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = TinyTransformerDecoderModel(config)
        self.transform = prediction_head(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()
