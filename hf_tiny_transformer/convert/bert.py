"""Convert stock `bert` checkpoints to the Bert family and back; the bytes of the weights are unchanged."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

import hf_tiny_transformer

from ..common.checkpoints import config_problem, load_model, read_config
from ..common.errors import UserError
from ..configuration_bert import TinyTransformerBertConfig
from ..families import FAMILIES
from ..modeling_bert import TinyTransformerBertPreTrainedModel

BertModelT = TypeVar("BertModelT", bound=TinyTransformerBertPreTrainedModel)

# (ours, stock). A name without .weight or .bias means both; {n} is the layer's number.
RENAMES = [
    ("model.embed_tokens", "bert.embeddings.word_embeddings"),
    ("model.embed_positions", "bert.embeddings.position_embeddings"),
    ("model.embed_token_types", "bert.embeddings.token_type_embeddings"),
    ("model.embed_norm", "bert.embeddings.LayerNorm"),
    ("model.layers.{n}.attention.q_proj", "bert.encoder.layer.{n}.attention.self.query"),
    ("model.layers.{n}.attention.k_proj", "bert.encoder.layer.{n}.attention.self.key"),
    ("model.layers.{n}.attention.v_proj", "bert.encoder.layer.{n}.attention.self.value"),
    ("model.layers.{n}.attention.o_proj", "bert.encoder.layer.{n}.attention.output.dense"),
    ("model.layers.{n}.attention_norm", "bert.encoder.layer.{n}.attention.output.LayerNorm"),
    ("model.layers.{n}.mlp.up_proj", "bert.encoder.layer.{n}.intermediate.dense"),
    ("model.layers.{n}.mlp.down_proj", "bert.encoder.layer.{n}.output.dense"),
    ("model.layers.{n}.mlp_norm", "bert.encoder.layer.{n}.output.LayerNorm"),
    ("model.pooler.dense", "bert.pooler.dense"),
    ("transform.dense", "cls.predictions.transform.dense"),
    ("transform.norm", "cls.predictions.transform.LayerNorm"),
    ("lm_head.weight", "cls.predictions.decoder.weight"),
    ("lm_head.bias", "cls.predictions.bias"),
    ("seq_relationship", "cls.seq_relationship"),
    ("classifier", "classifier"),
    ("qa_outputs", "qa_outputs"),
]

# name of a stock class -> our class
STOCK_ARCHITECTURES: dict[str, type[TinyTransformerBertPreTrainedModel]] = {
    name.removeprefix("TinyTransformer"): getattr(hf_tiny_transformer, name)
    for name in FAMILIES[TinyTransformerBertConfig].values()
}

# stock's names of one bias; with untied embeddings they are two parameters, and its forward uses the second
_BIAS, _DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
_BASE_FIELDS = {field.name for field in fields(PreTrainedConfig)}
_SHARED_FIELDS = [field.name for field in fields(TinyTransformerBertConfig) if field.name not in _BASE_FIELDS]
# stock field -> the only values with which stock computes the same function as our family
_ONLY_VALUES = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
}


def load_stock_bert(
    directory: str | Path, model_class: type[BertModelT], *, flag: str = "--init", seed: int = 0, exact: bool = False
) -> BertModelT:
    """Load a stock `bert` checkpoint as a class of the Bert family, in evaluation mode and in the dtype of the file.

    A head or pooler that the checkpoint lacks is initialised from `seed` and named in the log; a head that
    `model_class` lacks is dropped, or refused if `exact`. `flag` is the flag that named the directory.

    Raises:
        UserError: There is no such checkpoint, our family cannot express its config, or a weight of embeddings or
            layers is missing, unknown or of the wrong shape.
    """
    stock_config = read_stock_config(directory, flag)
    config = config_from_stock(stock_config, source=Path(directory) / "config.json")
    options = {"flag": flag, "new_head": True, "exact": exact, "seed": seed, "dtype": "auto"}
    stock = load_model(directory, _stock_class(model_class), stock_config, **options)
    output = stock.get_output_embeddings()
    tied = config.tie_word_embeddings and output is not None
    if tied and not torch.equal(output.weight, stock.get_input_embeddings().weight):
        raise UserError(
            f"{directory}: tie_word_embeddings is true in config.json, but cls.predictions.decoder.weight differs from "
            "the word embeddings; set it to false to keep both"
        )
    model, tensors = model_class(config).to(stock.dtype), stock.state_dict()
    if _DECODER_BIAS in tensors:
        tensors[_BIAS] = tensors[_DECODER_BIAS]
    model.load_state_dict({ours: tensors[name] for ours, name in _partners(model).items()})
    return model.eval()


def to_stock(model: TinyTransformerBertPreTrainedModel) -> transformers.PreTrainedModel:
    """Return the stock model of the same function and dtype, in evaluation mode."""
    stock = _stock_class(type(model))(stock_config(model)).to(model.dtype)
    ours = model.state_dict()
    tensors = {name: ours[own] for own, name in _partners(model).items()}
    if _BIAS in tensors:
        tensors[_DECODER_BIAS] = tensors[_BIAS]
    stock.load_state_dict(tensors)
    return stock.eval()


def read_stock_config(directory: str | Path, flag: str) -> BertConfig:
    """Return the config of a stock `bert` checkpoint.

    Raises:
        UserError: There is no such checkpoint, or a field is invalid.
    """
    config = read_config(directory, flag=flag)
    if not isinstance(config, BertConfig):
        file = Path(directory) / "config.json"
        raise UserError(f"{file}: model_type is {config.model_type!r}; expected a stock checkpoint of type 'bert'")
    return config


def config_from_stock(stock: BertConfig, source: str | Path = "config.json") -> TinyTransformerBertConfig:
    """Return the Bert family's config of the same function.

    Fields that a stock encoder does not read either (`use_cache`, `bos_token_id`, ...) are dropped.

    Raises:
        UserError: A field cannot be expressed (a decoder, relative positions, an unknown activation, ...).
    """
    for name, allowed in _ONLY_VALUES.items():
        value = getattr(stock, name, None)
        if value not in allowed:
            raise UserError(f"{source}: {name} is {value!r}; the Bert family supports only {allowed[0]!r}")
    if stock.hidden_act not in ACT2FN:
        raise UserError(f"{source}: hidden_act {stock.hidden_act!r} is unknown; expected {', '.join(sorted(ACT2FN))}")
    try:
        return TinyTransformerBertConfig(**_common_fields(stock))
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UserError(f"{source}: {config_problem(error)}") from None


def config_to_stock(config: TinyTransformerBertConfig) -> BertConfig:
    """Return the stock config of the same function; it keeps all our fields."""
    return BertConfig(**_common_fields(config))


def stock_config(model: TinyTransformerBertPreTrainedModel) -> BertConfig:
    """Return the config of the stock model."""
    config = config_to_stock(model.config)
    config.architectures = [_stock_class(type(model)).__name__]
    return config


def _common_fields(config: PreTrainedConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in (*_SHARED_FIELDS, "id2label", "label2id", "problem_type")}


def _stock_class(model_class: type[TinyTransformerBertPreTrainedModel]) -> type[transformers.PreTrainedModel]:
    return getattr(transformers, model_class.__name__.removeprefix("TinyTransformer"))


def _partners(model: TinyTransformerBertPreTrainedModel) -> dict[str, str]:
    """Return the stock name of each tensor of a model."""
    is_trunk, names = model.base_model is model, model.state_dict().keys()
    partners = {}
    for ours, stock in RENAMES:
        if is_trunk:
            ours, stock = ours.removeprefix("model."), stock.removeprefix("bert.")
        for n in range(model.config.num_hidden_layers if "{n}" in ours else 1):
            for suffix in ("", ".weight", ".bias"):
                if (name := ours.format(n=n) + suffix) in names:
                    partners[name] = stock.format(n=n) + suffix
    return partners
