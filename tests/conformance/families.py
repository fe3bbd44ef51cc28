"""The families under test: ours, and the stock ones that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FAMILY_VARIABLE = "CONFORMANCE_FAMILY"  # environment variable that names the family to suite.py

# Fields of every tiny config that knows them.
SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Family:
    """A config class; the tested classes are those that the Auto classes open it with.

    Args:
        config_class: Dotted name.
        settings: Fields of the tiny config in addition to `SHAPE`.
        counterparts: Stock families that one of our families is compared with.
        left_out: Auto classes whose class is not tested.
        deselected: Tests that transformers' own test file of the family overrides, and why.
    """

    config_class: str
    settings: dict[str, Any] = field(default_factory=dict)
    counterparts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    deselected: dict[str, str] = field(default_factory=dict)


OURS = {
    "bert": Family("hf_tiny_transformer.TinyTransformerBertConfig", counterparts=("stock-bert",)),
    "encoder": Family("hf_tiny_transformer.TinyTransformerEncoderConfig", counterparts=("stock-modernbert",)),
    "decoder": Family(
        "hf_tiny_transformer.TinyTransformerDecoderConfig", counterparts=("stock-llama", "stock-modernbert-decoder")
    ),
    "seq2seq": Family(
        "hf_tiny_transformer.TinyTransformerSeq2SeqConfig",
        settings={"decoder_start_token_id": 2},
        counterparts=("stock-bart",),
    ),
}

STOCK = {
    "stock-bert": Family("transformers.BertConfig", left_out=("AutoModelForCausalLM",)),  # our Bert has no decoder
    "stock-modernbert": Family("transformers.ModernBertConfig"),
    "stock-llama": Family("transformers.LlamaConfig", settings={"num_key_value_heads": 2}),
    "stock-modernbert-decoder": Family("transformers.ModernBertDecoderConfig"),
    "stock-bart": Family(
        "transformers.BartConfig",
        settings={
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 40,
            "decoder_ffn_dim": 40,
            "decoder_start_token_id": 2,
        },
        left_out=("AutoModelForCausalLM",),  # the decoder alone, which takes other inputs
        deselected={"test_inputs_embeds": "BartForSequenceClassification finds the end of a text by its ids"},
    ),
}

FAMILIES = OURS | STOCK
