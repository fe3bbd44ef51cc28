# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Seq2Seq family."""

import copy

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .configuration_trunk import FULL, SLIDING, TinyTransformerTrunkConfig


@strict
class TinyTransformerSeq2SeqConfig(TinyTransformerTrunkConfig):
    """Encoder, and decoder with cross-attention in every block, of equal width.

    `num_hidden_layers` is the encoder's depth. `tie_word_embeddings` ties the embeddings of both sides and the output.

    Args:
        num_decoder_layers: Layers of the decoder; default: as many as the encoder has.
        use_cache: Whether to keep keys and values during generation.
        decoder_start_token_id: Id of the first token of the decoder's input.
        kwargs: Fields of `TinyTransformerTrunkConfig`.
    """

    model_type = "tiny_transformer_seq2seq"
    keys_to_ignore_at_inference = ["past_key_values"]

    num_decoder_layers: int | None = None
    is_encoder_decoder: bool = True
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = 0

    def __post_init__(self, **kwargs: object) -> None:
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_hidden_layers
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check fields against each other; `@strict` calls this after init and before saving."""
        super().validate_architecture()
        if self.num_decoder_layers is not None and self.num_decoder_layers < 1:
            raise ValueError(f"num_decoder_layers ({self.num_decoder_layers}) must be at least 1")
        if SLIDING in (self.layer_types or ()):
            raise ValueError(f"layer_types: Seq2Seq supports only {FULL!r}")

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the config of one side; transformers sizes the decoder's cache by its `num_hidden_layers`.

        The result is the config itself, so that assignments to it take effect, unless the decoder differs in depth.
        """
        depth = self.num_decoder_layers or self.num_hidden_layers
        if not decoder or encoder or depth == self.num_hidden_layers:
            return self
        config = copy.deepcopy(self)
        config.num_hidden_layers, config.layer_types = depth, [FULL] * depth
        return config
