# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Seq2Seq family."""

import copy

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .configuration_trunk import TinyTransformerTrunkConfig


@strict
class TinyTransformerSeq2SeqConfig(TinyTransformerTrunkConfig):
    """An encoder, and a decoder that asks it in every block. Both have one width; the fields of the shape are in
    `TinyTransformerTrunkConfig`.

    Args:
        num_hidden_layers: of the encoder.
        num_decoder_layers: of the decoder; None means as many as the encoder has.
        tie_word_embeddings: one matrix serves as the encoder's and the decoder's embeddings and as the output.
        decoder_start_token_id: what the decoder's input begins with.
        use_cache: keep keys and values while generating, so that each new token costs one position.
    """

    model_type = "tiny_transformer_seq2seq"
    keys_to_ignore_at_inference = ["past_key_values"]

    num_decoder_layers: int | None = None
    is_encoder_decoder: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_hidden_layers
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Run by `@strict` after init and before saving."""
        super().validate_architecture()
        if self.num_decoder_layers < 1:
            raise ValueError(f"num_decoder_layers ({self.num_decoder_layers}) must be at least 1")

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """One side's view of the config. transformers sizes the decoder's cache by its `num_hidden_layers`.

        It is the config itself, so that what is set on it holds, unless the decoder differs in depth.
        """
        if not decoder or encoder or self.num_decoder_layers == self.num_hidden_layers:
            return self
        config = copy.deepcopy(self)
        config.num_hidden_layers = self.num_decoder_layers
        return config
