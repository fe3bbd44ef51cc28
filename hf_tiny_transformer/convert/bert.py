"""Convert stock `bert` checkpoints to the Bert family and back; the bytes of the weights are unchanged."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import BertConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

import hf_tiny_transformer

from ..common.checkpoints import config_problem, copy_tokenizer_files, read_config, read_tensors
from ..common.errors import UserError
from ..common.files import atomic_directory, require_free_output
from ..configuration_bert import TinyTransformerBertConfig
from ..families import FAMILIES
from ..modeling_bert import TinyTransformerBertPreTrainedModel

logger = logging.getLogger(__name__)

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

# `architectures` of a stock config.json -> our class
STOCK_ARCHITECTURES: dict[str, type[TinyTransformerBertPreTrainedModel]] = {
    name.removeprefix("TinyTransformer"): getattr(hf_tiny_transformer, name)
    for name in FAMILIES[TinyTransformerBertConfig].values()
}

_TRUNK_PREFIXES = ("embeddings.", "encoder.", "pooler.")
# stock's second name of cls.predictions.bias, and the one that its forward uses
_DECODER_BIAS = "cls.predictions.decoder.bias"
_BASE_FIELDS = {field.name for field in fields(PreTrainedConfig)}
_SHARED_FIELDS = [field.name for field in fields(TinyTransformerBertConfig) if field.name not in _BASE_FIELDS]
_TASK_FIELDS = ("id2label", "label2id", "problem_type")
# stock field -> the only values with which stock computes the same function as our family
_ONLY_VALUES = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
}


def load_stock_bert(directory: str | Path, model_class: type[BertModelT]) -> BertModelT:
    """Load a stock `bert` checkpoint as a class of the Bert family, in evaluation mode and in the dtype of the file.

    A head or pooler that the checkpoint lacks is newly initialised and named in the log; a head that `model_class`
    lacks is dropped. Older files are understood: the buffer `embeddings.position_ids`, the names of a bare `BertModel`,
    and `LayerNorm.gamma` / `beta`.

    Raises:
        UserError: There is no such checkpoint, our family cannot express its config, or a weight of embeddings or
            layers is missing, unknown or of the wrong shape.
    """
    directory = Path(directory)
    config = config_from_stock(read_stock_config(directory), source=directory / "config.json")
    given = _to_our_names(read_tensors(directory), config, directory)
    model = model_class(config)
    if model.base_model is model:
        given = {name.removeprefix("model."): tensor for name, tensor in given.items() if name.startswith("model.")}
    _check_weights(model, given, directory)
    model.to(next(iter(given.values())).dtype)
    model.load_state_dict(given, strict=False)
    model.tie_weights()
    return model.eval()


def save_stock_bert(
    model: TinyTransformerBertPreTrainedModel, directory: str | Path, tokenizer_from: str | Path | None = None
) -> None:
    """Write a model of the Bert family as a stock `bert` checkpoint, with the tokenizer files of `tokenizer_from`.

    Raises:
        UserError: `directory` is not empty, or stock has no such class.
    """
    stock_class = type(model).__name__.removeprefix("TinyTransformer")
    if stock_class not in STOCK_ARCHITECTURES:
        raise UserError(f"{type(model).__name__} has no stock class; these have: {', '.join(STOCK_ARCHITECTURES)}")
    config = config_to_stock(model.config)
    config.architectures = [stock_class]
    config.dtype = model.dtype
    with atomic_directory(require_free_output(directory)) as staging:
        config.save_pretrained(staging)
        save_file(_to_stock_tensors(model), staging / "model.safetensors", metadata={"format": "pt"})
        if tokenizer_from is not None:
            copy_tokenizer_files(tokenizer_from, staging)


def read_stock_config(directory: str | Path) -> BertConfig:
    """Return the config of a stock `bert` checkpoint.

    Raises:
        UserError: There is no such checkpoint, or a field is invalid.
    """
    config = read_config(directory, flag="--from")
    if not isinstance(config, BertConfig):
        file = Path(directory) / "config.json"
        raise UserError(f"{file}: model_type is {config.model_type!r}; expected a stock checkpoint of type 'bert'")
    return config


def stock_class_of(directory: str | Path) -> type[TinyTransformerBertPreTrainedModel]:
    """Return our class for the one in `architectures` of a stock checkpoint.

    Raises:
        UserError: It is not a stock `bert` checkpoint, or we have no such class.
    """
    names = read_stock_config(directory).architectures or []
    if len(names) != 1 or names[0] not in STOCK_ARCHITECTURES:
        file = Path(directory) / "config.json"
        raise UserError(f"{file}: architectures is {names}; expected one of {', '.join(STOCK_ARCHITECTURES)}")
    return STOCK_ARCHITECTURES[names[0]]


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
    """Return the stock config of the same function; it keeps every field of ours."""
    return BertConfig(**_common_fields(config))


def _common_fields(config: PreTrainedConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in (*_SHARED_FIELDS, *_TASK_FIELDS)}


def _partner_names(num_hidden_layers: int) -> dict[str, str]:
    """Return our full parameter name -> stock's, for all layers."""
    partners = {}
    for ours, stock in RENAMES:
        numbers = range(num_hidden_layers) if "{n}" in ours else [0]
        suffixes = [""] if ours.endswith((".weight", ".bias")) else [".weight", ".bias"]
        for n in numbers:
            for suffix in suffixes:
                partners[ours.format(n=n) + suffix] = stock.format(n=n) + suffix
    return partners


def _to_our_names(
    stock: dict[str, torch.Tensor], config: TinyTransformerBertConfig, directory: Path
) -> dict[str, torch.Tensor]:
    """Rename a stock checkpoint's tensors; names of the trunk start with `model.`."""
    stock = {_modern_stock_name(name): tensor for name, tensor in stock.items()}
    stock.pop("bert.embeddings.position_ids", None)  # a buffer of older versions: 0, 1, 2, ...
    if _DECODER_BIAS in stock:
        stock["cls.predictions.bias"] = stock.pop(_DECODER_BIAS)
    partners = {stock_name: ours for ours, stock_name in _partner_names(config.num_hidden_layers).items()}
    if unknown := sorted(stock.keys() - partners.keys()):
        raise UserError(f"{directory}: {len(unknown)} weights have no place in the Bert family (first: {unknown[0]})")
    if config.tie_word_embeddings and "cls.predictions.decoder.weight" in stock:
        decoder = stock.pop("cls.predictions.decoder.weight")
        embeddings = stock.get("bert.embeddings.word_embeddings.weight")
        if embeddings is not None and not torch.equal(decoder, embeddings):
            raise UserError(
                f"{directory}: tie_word_embeddings is true in config.json, but cls.predictions.decoder.weight differs "
                "from the word embeddings; set it to false to keep both"
            )
    return {partners[name]: tensor for name, tensor in stock.items()}


def _modern_stock_name(name: str) -> str:
    """Return the name that today's BertForPreTraining has for it."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return f"bert.{name}" if name.startswith(_TRUNK_PREFIXES) else name


def _check_weights(model: TinyTransformerBertPreTrainedModel, given: dict[str, torch.Tensor], directory: Path) -> None:
    """Check that the tensors fit the model; log the weights of a head that are missing."""
    own = model.state_dict()
    for name, tensor in given.items():
        if name in own and own[name].shape != tensor.shape:
            shapes = f"{list(tensor.shape)}; config.json requires {list(own[name].shape)}"
            raise UserError(f"{directory}: weight {name} has shape {shapes}")
    if len(dtypes := {str(tensor.dtype) for tensor in given.values()}) > 1:
        raise UserError(f"{directory}: weights have several dtypes ({', '.join(sorted(dtypes))}); convert them to one")
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing = sorted(own.keys() - given.keys() - tied)
    if in_trunk := [name for name in missing if re.match(r"(model\.)?(embed_|layers\.)", name)]:
        raise UserError(f"{directory}: {len(in_trunk)} weights are missing (first: {in_trunk[0]})")
    if missing:
        logger.warning("%s lacks these weights, which are newly initialised: %s", directory, ", ".join(missing))


def _to_stock_tensors(model: TinyTransformerBertPreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors that stock itself would save: tied embeddings once, untied ones twice."""
    is_trunk = model.base_model is model
    partners = _partner_names(model.config.num_hidden_layers)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        stock_name = partners[f"model.{name}" if is_trunk else name]
        tensors[stock_name.removeprefix("bert.") if is_trunk else stock_name] = tensor.detach().cpu().contiguous()
    if "cls.predictions.bias" in tensors and not model.config.tie_word_embeddings:
        tensors[_DECODER_BIAS] = tensors["cls.predictions.bias"].clone()
    return tensors
