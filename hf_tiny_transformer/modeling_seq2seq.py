"""The Seq2Seq family: the Encoder reads, the Decoder writes and asks it in every block (Vaswani et al. 2017)."""

from typing import Unpack

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import TransformersKwargs, can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

from .attention import MultiHeadAttention
from .configuration_seq2seq import TinyTransformerSeq2SeqConfig
from .layers import gather_targets
from .masks import cross_attention_mask
from .modeling_decoder import TinyTransformerDecoderModel
from .modeling_encoder import TinyTransformerEncoderModel
from .token_loss import predict_tokens
from .trunk import TinyTransformerLayer, TinyTransformerTrunkPreTrainedModel, prediction_head


class TinyTransformerSeq2SeqEncoder(TinyTransformerEncoderModel):
    """The reading half: the Encoder family's trunk."""

    config: TinyTransformerSeq2SeqConfig


class TinyTransformerSeq2SeqDecoder(TinyTransformerDecoderModel):
    """The writing half: the Decoder family's trunk with cross-attention in every layer."""

    config: TinyTransformerSeq2SeqConfig
    _can_record_outputs = {
        "hidden_states": TinyTransformerLayer,
        "attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="attention"),
        "cross_attentions": OutputRecorder(MultiHeadAttention, index=1, layer_name="cross_attention"),
    }

    def __init__(self, config: TinyTransformerSeq2SeqConfig):
        super().__init__(config, num_layers=config.num_decoder_layers, cross_attention=True)

    def new_cache(self) -> Cache:
        """Two empty caches: of the decoder's own keys and values, and of the encoder's, projected once."""
        return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache(config=self.config))

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        encoder_position_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Args:
        encoder_hidden_states: (B, S, hidden_size), what the encoder answers with.
        encoder_attention_mask: (B, S), 1 = real token, 0 = padding.
        encoder_position_ids: (B, S). Where these and position_ids restart, the n-th document of the decoder's row asks
            the n-th of the encoder's. The rest is as in `TinyTransformerDecoderModel`.
        """
        inputs_embeds = self.embed(input_ids, inputs_embeds)
        cross_mask = cross_attention_mask(
            self.config,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            position_ids=None if attention_mask is not None or past_key_values is not None else position_ids,
            encoder_position_ids=encoder_position_ids,
        )
        return super().forward(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=cross_mask,
            **kwargs,
        )


class TinyTransformerSeq2SeqPreTrainedModel(TinyTransformerTrunkPreTrainedModel):
    """Loading and saving of the family."""

    config: TinyTransformerSeq2SeqConfig
    _skip_keys_device_placement = ["past_key_values"]

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """transformers resizes the input embeddings, which are the encoder's; untied, the decoder has its own."""
        embeddings = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if not self.config.tie_word_embeddings:
            decoder = self.get_decoder()
            decoder.embed_tokens = self._get_resized_embeddings(
                decoder.embed_tokens, embeddings.num_embeddings, mean_resizing=mean_resizing
            )
        return embeddings


class TinyTransformerSeq2SeqModel(TinyTransformerSeq2SeqPreTrainedModel):
    """Both halves: two sequences in, one contextual vector per token of the second out."""

    _tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}

    def __init__(self, config: TinyTransformerSeq2SeqConfig):
        super().__init__(config)
        self.encoder = TinyTransformerSeq2SeqEncoder(config)
        self.decoder = TinyTransformerSeq2SeqDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The encoder's; the decoder's are the same matrix unless `tie_word_embeddings` is off."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Sets the encoder's; tying brings the decoder's along."""
        self.encoder.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        position_ids: torch.LongTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """Args:
        input_ids: (B, S) what is read; or inputs_embeds (B, S, hidden_size); or encoder_outputs of an earlier call.
        decoder_input_ids: (B, T) what has been written so far; or decoder_inputs_embeds (B, T, hidden_size).
        attention_mask, decoder_attention_mask: (B, S) and (B, past + T), 1 = real token, 0 = padding.
        position_ids, decoder_position_ids: (B, S) and (B, T). Where both restart and no masks are given, the rows hold
            several documents: the n-th of the decoder's row sees itself and the n-th of the encoder's.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                **kwargs,
            )
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            position_ids=decoder_position_ids,
            past_key_values=past_key_values,
            inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
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
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


class TinyTransformerSeq2SeqForConditionalGeneration(TinyTransformerSeq2SeqPreTrainedModel, GenerationMixin):
    """Both halves with a tied language-model head: translation, summarisation, filling in what is missing."""

    _tied_weights_keys = {
        "model.decoder.embed_tokens.weight": "model.encoder.embed_tokens.weight",
        "lm_head.weight": "model.encoder.embed_tokens.weight",
    }

    def __init__(self, config: TinyTransformerSeq2SeqConfig):
        super().__init__(config)
        self.loss_type = "ForMaskedLM"  # by its name the class would get the causal loss, which shifts labels again
        self.model = TinyTransformerSeq2SeqModel(config)
        self.transform = prediction_head(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=True)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple[torch.Tensor, ...] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        position_ids: torch.LongTensor | None = None,
        decoder_position_ids: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        target_positions: torch.LongTensor | None = None,
        skip_logits: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Args:
        labels: (B, T) what is to be written, -100 where nothing is; decoder_input_ids are made of it unless given.
            With `target_positions` (N,) ids.
        logits_to_keep: compute the last so many positions only, 0 for all; or the positions themselves.
        target_positions: (N,) indices into the flattened B * T tokens; the head then runs on these only and `logits` is
            (N, vocab_size) instead of (B, T, vocab_size).
        skip_logits: the loss only: faster, and the logits are never all in memory.
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
        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
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

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """The labels one step later, behind the start token: (B, T) -> (B, T). `DataCollatorForSeq2Seq` calls this.

        Raises:
            ValueError: the config has no `decoder_start_token_id` or no `pad_token_id`.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise ValueError("making decoder_input_ids needs decoder_start_token_id and pad_token_id in the config")
        shifted = torch.cat((torch.full_like(labels[:, :1], start), labels[:, :-1]), dim=1)
        return shifted.masked_fill(shifted == -100, pad)
