"""Convert stock `bert` checkpoints to the Bert family and back; the bytes of the weights are unchanged."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from ..common.checkpoints import config_problem
from ..common.errors import UserError
from ..configuration_bert import TinyTransformerBertConfig
from ..modeling_bert import TinyTransformerBertPreTrainedModel
from . import rename, stock_name

RENAMES = [
    (r"^model\.", "bert."),
    ("embed_tokens", "embeddings.word_embeddings"),
    ("embed_positions", "embeddings.position_embeddings"),
    ("embed_token_types", "embeddings.token_type_embeddings"),
    ("embed_norm", "embeddings.LayerNorm"),
    (r"layers\.", "encoder.layer."),
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    ("attention_norm", "attention.output.LayerNorm"),
    (r"mlp\.up_proj", "intermediate.dense"),
    (r"mlp\.down_proj", "output.dense"),
    ("mlp_norm", "output.LayerNorm"),
    (r"^transform\.dense", "cls.predictions.transform.dense"),
    (r"^transform\.norm", "cls.predictions.transform.LayerNorm"),
    (r"^lm_head\.weight", "cls.predictions.decoder.weight"),
    (r"^lm_head\.bias", "cls.predictions.bias"),
    ("^seq_relationship", "cls.seq_relationship"),
]

# stock's names of one bias; with untied embeddings they are two parameters, and its forward uses the second
_BIAS, _DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
_SHARED_FIELDS = {field.name for field in fields(TinyTransformerBertConfig)} - {
    f.name for f in fields(PreTrainedConfig)
}
_SHARED_FIELDS |= {"id2label", "label2id", "problem_type"}
# the only values with which stock computes the same function as our family
_ONLY_VALUES = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}


def our_weights(model: TinyTransformerBertPreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of our model, given those of the stock model."""
    if _DECODER_BIAS in tensors:
        tensors = tensors | {_BIAS: tensors[_DECODER_BIAS]}
    return {name: tensors[rename(name, RENAMES)] for name in model.state_dict()}


def stock_weights(model: TinyTransformerBertPreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights under their stock names."""
    weights = {rename(name, RENAMES): tensor for name, tensor in model.state_dict().items()}
    return weights | ({_DECODER_BIAS: weights[_BIAS]} if _BIAS in weights else {})


def config_from_stock(stock: BertConfig, source: str | Path = "config.json") -> TinyTransformerBertConfig:
    """Return the Bert family's config of the same function.

    Fields that a stock encoder does not read either (`use_cache`, `bos_token_id`, ...) are dropped.

    Raises:
        UserError: A field cannot be expressed (a decoder, relative positions, an unknown activation, ...).
    """
    for name, only in _ONLY_VALUES.items():
        if (value := getattr(stock, name, None)) not in (only, None):
            raise UserError(f"{source}: {name} is {value!r}; the Bert family supports only {only!r}")
    if stock.hidden_act not in ACT2FN:
        raise UserError(f"{source}: hidden_act {stock.hidden_act!r} is unknown; expected {', '.join(sorted(ACT2FN))}")
    try:
        return TinyTransformerBertConfig(**{name: getattr(stock, name) for name in _SHARED_FIELDS})
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UserError(f"{source}: {config_problem(error)}") from None


def stock_config(model: TinyTransformerBertPreTrainedModel) -> BertConfig:
    """Return the stock config of the same function; it keeps all our fields."""
    shared = {name: getattr(model.config, name) for name in _SHARED_FIELDS}
    return BertConfig(**shared, architectures=[stock_name(type(model))])
