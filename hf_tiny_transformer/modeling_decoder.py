"""The Decoder family: the Encoder's blocks with causal attention, a cache and `generate`."""

from typing import Unpack

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithPast, ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import MultiHeadAttention
from .configuration_decoder import TinyTransformerDecoderConfig
from .configuration_trunk import TinyTransformerTrunkConfig
from .heads import SequenceClassificationHead
from .layers import ForwardKwargs, gather_targets, keep_positions, last_token
from .masks import causal_mask, cross_attention_mask
from .token_loss import IGNORED, predict_tokens
from .trunk import TinyTransformerLayer, TinyTransformerTrunk, TinyTransformerTrunkPreTrainedModel, prediction_head


class TinyTransformerDecoderPreTrainedModel(TinyTransformerTrunkPreTrainedModel):
    """Base class of the family: config, pooling, recorded outputs."""

    config: TinyTransformerDecoderConfig
    _skip_keys_device_placement = ["past_key_values"]
    _can_record_outputs = {"hidden_states": TinyTransformerLayer, "attentions": MultiHeadAttention}

    def pool(self, outputs: ModelOutput, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Select the last real token, the only one that has attended to the whole text."""
        return last_token(outputs["last_hidden_state"], attention_mask)


class TinyTransformerDecoderModel(TinyTransformerTrunk, TinyTransformerDecoderPreTrainedModel):
    """Decoder trunk: one vector per token, computed from that token and earlier ones."""

    def __init__(self, config: TinyTransformerTrunkConfig, *, cross_attention: bool = False):
        super().__init__(config, is_causal=True, cross_attention=cross_attention)

    def new_cache(self) -> Cache:
        """Build an empty cache of keys and values."""
        return DynamicCache(config=self.config)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        token_type_ids: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        encoder_position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Decode texts.

        `past_key_values` is extended in place; with a cache, restarting positions do not separate documents.
        `use_cache` returns a new cache if none is given, except during training. `token_type_ids` are ignored; some
        tokenizers always return them.

        With cross-attention, the encoder's inputs have length S. If `encoder_position_ids` (B, S) also restart, the
        n-th document attends to the encoder's n-th.
        """
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        # The masks come before a new cache: transformers looks for packed documents only if there is no cache.
        masks = {
            kind: causal_mask(self.config, inputs_embeds, attention_mask, position_ids, past_key_values, kind)
            for kind in self.layer_types
        }
        cross_mask = None
        if encoder_hidden_states is not None:
            is_packed = attention_mask is None and past_key_values is None
            cross_mask = cross_attention_mask(
                self.config,
                inputs_embeds,
                encoder_hidden_states,
                encoder_attention_mask,
                position_ids=position_ids if is_packed else None,
                encoder_position_ids=encoder_position_ids,
            )
        if past_key_values is None and use_cache and not self.training:
            past_key_values = self.new_cache()
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past).unsqueeze(0)
        hidden_states, position_embeddings = self.add_positions(inputs_embeds, position_ids)
        for layer in self.layers:
            kind = str(layer.layer_type)
            hidden_states = layer(
                hidden_states,
                masks[kind],
                encoder_hidden_states,  # positional, because reentrant checkpointing drops gradients of keywords
                cross_mask,
                position_embeddings=position_embeddings[kind],
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )


class TinyTransformerDecoderForCausalLM(TinyTransformerDecoderPreTrainedModel, GenerationMixin):
    """Decoder with a tied language-model head that predicts the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: TinyTransformerDecoderConfig):
        super().__init__(config)
        self.model = TinyTransformerDecoderModel(config)
        self.transform = prediction_head(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        target_positions: torch.Tensor | None = None,
        skip_logits: bool = False,
        token_type_ids: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> CausalLMOutputWithPast:
        """Predict the next token at each position: logits (B, T, vocab_size).

        `labels` are (B, T) token ids, -100 = ignored. Position t is compared with label t + 1, so that `input_ids` can
        serve as labels; with `target_positions` there is no shift. `target_positions` and `skip_logits` are as in
        `MaskedLMHead`. `logits_to_keep` selects the last N positions (0 = all), or the given positions.
        `token_type_ids` are ignored, but named, because `generate` rejects arguments that a forward does not name.
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
        hidden_states = keep_positions(outputs.last_hidden_state, logits_to_keep)
        features = self.transform(gather_targets(hidden_states, target_positions))
        if labels is not None:
            if target_positions is None:  # under sequence parallelism the caller passes labels that are already shifted
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
    SequenceClassificationHead, TinyTransformerDecoderPreTrainedModel
):
    """Decoder with a classifier or regressor on the last token."""

    def __init__(self, config: TinyTransformerDecoderConfig):
        trunk, transform = TinyTransformerDecoderModel(config), prediction_head(config)
        super().__init__(config, trunk, transform, config.classifier_dropout)
