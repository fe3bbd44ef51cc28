# Copyright 2026 The hf_tiny_transformer authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the Bert family: the fields and names of stock `bert`, encoder part."""

from huggingface_hub.dataclasses import strict

from .configuration_base import TinyTransformerConfig, activation_field, positive_field, probability_field


@strict
class TinyTransformerBertConfig(TinyTransformerConfig):
    """BERT as published (Devlin et al. 2018). The defaults are those of BERT-Tiny (Turc et al. 2019), with 8192 tokens.

    Args:
        classifier_dropout: Dropout before a classifier; default: `hidden_dropout_prob`.
        pad_token_id: Id of the padding token, whose embedding is not trained.
    """

    model_type = "tiny_transformer_bert"

    vocab_size: int = positive_field(default=8192)
    hidden_size: int = positive_field(default=128)
    num_hidden_layers: int = positive_field(default=2)
    num_attention_heads: int = positive_field(default=2)
    intermediate_size: int = positive_field(default=512)
    hidden_act: str = activation_field(default="gelu")
    max_position_embeddings: int = positive_field(default=512)
    type_vocab_size: int = positive_field(default=2)
    initializer_range: float = probability_field(default=0.02)
    layer_norm_eps: float = positive_field(default=1e-12)
    hidden_dropout_prob: float | int = probability_field(default=0.1)
    attention_probs_dropout_prob: float | int = probability_field(default=0.1)
    classifier_dropout: float | int | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0

    def validate_architecture(self) -> None:
        """Check fields against each other; `@strict` calls this after init and before saving."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if self.classifier_dropout is not None and not 0 <= self.classifier_dropout <= 1:
            raise ValueError(f"classifier_dropout ({self.classifier_dropout}) must be between 0 and 1")
