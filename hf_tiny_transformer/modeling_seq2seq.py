"""The Seq2Seq family: an encoder, and a decoder with cross-attention in every block (Vaswani et al. 2017)."""

from typing import Unpack

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

from .attention import MultiHeadAttention
from .configuration_seq2seq import TinyTransformerSeq2SeqConfig
from .layers import ForwardKwargs, gather_targets, keep_positions
from .modeling_decoder import TinyTransformerDecoderModel
from .modeling_encoder import TinyTransformerEncoderModel
from .token_loss import IGNORED, predict_tokens
from .trunk import TinyTransformerLayer, TinyTransformerTrunkPreTrainedModel, prediction_head


class TinyTransformerSeq2SeqEncoder(TinyTransformerEncoderModel):
    """Encoder half: the Encoder family's trunk."""

    config: TinyTransformerSeq2SeqConfig  # type: ignore[assignment]  # the trunk reads shared fields only


class TinyTransformerSeq2SeqDecoder(TinyTransformerDecoderModel):
    """Decoder half: the Decoder family's trunk with cross-attention in every layer."""

    config: TinyTransformerSeq2SeqConfig  # type: ignore[assignment]  # the trunk reads shared fields only
    _can_record_outputs = {
        "hidden_states": TinyTransformerLayer,
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="attention"),
        "cross_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="cross_attention"),
    }

    def __init__(self, config: TinyTransformerSeq2SeqConfig):
        super().__init__(config, cross_attention=True)

    def new_cache(self) -> Cache:
        """Build two empty caches: for self-attention, and for the encoder's keys and values."""
        return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))


class TinyTransformerSeq2SeqPreTrainedModel(TinyTransformerTrunkPreTrainedModel):
    """Base class of the family: config and resizing of embeddings."""

    config: TinyTransformerSeq2SeqConfig
    _skip_keys_device_placement = ["past_key_values"]

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize the decoder's embeddings too: transformers resizes the encoder's, and untied ones are separate."""
        embeddings = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if not self.config.tie_word_embeddings:
            decoder = self.get_decoder()
            decoder.embed_tokens = self._get_resized_embeddings(
                decoder.embed_tokens, embeddings.num_embeddings, mean_resizing=mean_resizing
            )
        return embeddings


class TinyTransformerSeq2SeqModel(TinyTransformerSeq2SeqPreTrainedModel):
    """Encoder and decoder: one contextual vector per token of the decoder's sequence."""

    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}

    def __init__(self, config: TinyTransformerSeq2SeqConfig):
        super().__init__(config)
        self.encoder = TinyTransformerSeq2SeqEncoder(config)
        self.decoder = TinyTransformerSeq2SeqDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the encoder's embeddings; the decoder shares them unless `tie_word_embeddings` is off."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the encoder's embeddings; `tie_weights` then replaces the decoder's."""
        self.encoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        position_ids: torch.Tensor | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[ForwardKwargs],
    ) -> Seq2SeqModelOutput:
        """Encode `input_ids` (B, S) and decode `decoder_input_ids` (B, T).

        `encoder_outputs` of an earlier call replace `input_ids`. `past_key_values`, the decoder's cache, is extended in
        place; `use_cache` returns a new one if none is given, except during training. If `position_ids` and
        `decoder_position_ids` restart and there are no masks, the n-th document of the decoder's row attends to itself
        and to the n-th of the encoder's.
        """
        if encoder_outputs is None:
            encoded = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **kwargs,
            )
        elif isinstance(encoder_outputs, BaseModelOutput):
            encoded = encoder_outputs
        else:
            encoded = BaseModelOutput(*encoder_outputs)
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            encoder_hidden_states=encoded.last_hidden_state,
            encoder_attention_mask=attention_mask,
            encoder_position_ids=position_ids,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )


class TinyTransformerSeq2SeqForConditionalGeneration(TinyTransformerSeq2SeqPreTrainedModel, GenerationMixin):
    """Encoder and decoder with a tied language-model head: translation, summarisation, denoising."""

    _tied_weights_keys = {
        "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
        "lm_head.weight": "model.encoder.embed_tokens.weight",
    }

    def __init__(self, config: TinyTransformerSeq2SeqConfig):
        super().__init__(config)
        self.loss_type = "ForMaskedLM"  # transformers would choose the causal loss by the class name, and shift labels
        self.model = TinyTransformerSeq2SeqModel(config)
        self.transform = prediction_head(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        position_ids: torch.Tensor | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        target_positions: torch.Tensor | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[ForwardKwargs],
    ) -> Seq2SeqLMOutput:
        """Predict the tokens of the decoder's sequence: logits (B, T, vocab_size).

        `decoder_input_ids` are `labels` shifted by one if they are not given. `labels`, `target_positions` and
        `skip_logits` are as in `MaskedLMHead`, `logits_to_keep` as in the Decoder, all other inputs as in the trunk.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            position_ids=position_ids,
            decoder_position_ids=decoder_position_ids,
            **kwargs,
        )
        hidden_states = keep_positions(outputs.last_hidden_state, logits_to_keep)
        features = self.transform(gather_targets(hidden_states, target_positions))
        loss, logits = predict_tokens(self, features, labels, skip_logits=skip_logits, **kwargs)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
        )

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Shift the labels (B, T) by one behind the start token; `DataCollatorForSeq2Seq` calls this.

        Raises:
            ValueError: If the config has no `decoder_start_token_id` or no `pad_token_id`.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise ValueError(
                "cannot make decoder_input_ids from labels: the config needs decoder_start_token_id and pad_token_id"
            )
        shifted = torch.cat((torch.full_like(labels[:, :1], start), labels[:, :-1]), dim=1)
        return shifted.masked_fill(shifted == IGNORED, pad)
