"""Stock `bert` checkpoints <-> the Bert family: one to one, the weights' bytes untouched."""

import logging
import re
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import BertConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig

from .checkpoint_files import copy_tokenizer_files, read_config_json, read_safetensors
from .configuration_bert import TinyTransformerBertConfig
from .modeling_bert import (
    TinyTransformerBertForMaskedLM,
    TinyTransformerBertForMultipleChoice,
    TinyTransformerBertForNextSentencePrediction,
    TinyTransformerBertForPreTraining,
    TinyTransformerBertForQuestionAnswering,
    TinyTransformerBertForSequenceClassification,
    TinyTransformerBertForTokenClassification,
    TinyTransformerBertModel,
    TinyTransformerBertPreTrainedModel,
)
from .runs import UserError, atomic_directory, require_free_output

logger = logging.getLogger(__name__)

BertModelT = TypeVar("BertModelT", bound=TinyTransformerBertPreTrainedModel)

# (ours, stock). A name without .weight or .bias stands for both; {n} is the layer's number.
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

# BertForPreTraining -> TinyTransformerBertForPreTraining, and so on: what `architectures` in a config.json names
STOCK_ARCHITECTURES: dict[str, type[TinyTransformerBertPreTrainedModel]] = {
    model_class.__name__.removeprefix("TinyTransformer"): model_class
    for model_class in (
        TinyTransformerBertModel,
        TinyTransformerBertForPreTraining,
        TinyTransformerBertForMaskedLM,
        TinyTransformerBertForNextSentencePrediction,
        TinyTransformerBertForSequenceClassification,
        TinyTransformerBertForTokenClassification,
        TinyTransformerBertForQuestionAnswering,
        TinyTransformerBertForMultipleChoice,
    )
}

_TRUNK_PREFIXES = ("embeddings.", "encoder.", "pooler.")
# stock's second name of cls.predictions.bias; its forward reads this one
_DECODER_BIAS = "cls.predictions.decoder.bias"
_BASE_FIELDS = {field.name for field in fields(PreTrainedConfig)}
_SHARED_FIELDS = [field.name for field in fields(TinyTransformerBertConfig) if field.name not in _BASE_FIELDS]
_TASK_FIELDS = ("id2label", "label2id", "problem_type")
# stock field -> the only values with which stock computes what our family computes
_ONLY_VALUES = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
}


def load_stock_bert(directory: str | PathLike, model_class: type[BertModelT]) -> BertModelT:
    """Opens a stock `bert` checkpoint as `model_class` of the Bert family, in evaluation mode and in the file's dtype.

    Embeddings and layers must all be there. A head (or the pooler) that the checkpoint lacks is newly initialised and a
    warning names it; a head that `model_class` lacks is left out. The buffer `embeddings.position_ids`, the prefix-free
    names of a bare `BertModel` and the older `LayerNorm.gamma` / `beta` are understood.

    Args:
        directory: holds config.json and model.safetensors (or its shards with their index).

    Raises:
        UserError: no such checkpoint, no safetensors, a config our family cannot express, a weight that is missing,
            unknown or of the wrong shape.
    """
    directory = Path(directory)
    config = config_from_stock(read_stock_config(directory), source=directory / "config.json")
    given = _to_our_names(read_safetensors(directory), config, directory)
    model = model_class(config)
    is_trunk = not hasattr(model, model_class.base_model_prefix)
    if is_trunk:
        given = {name.removeprefix("model."): tensor for name, tensor in given.items() if name.startswith("model.")}
    _check_weights(model, given, directory)

    model.to(next(iter(given.values())).dtype)
    model.load_state_dict(given, strict=False)
    model.tie_weights()
    return model.eval()


def save_stock_bert(
    model: TinyTransformerBertPreTrainedModel, directory: str | PathLike, tokenizer_from: str | PathLike | None = None
) -> None:
    """Writes `model` as a stock `bert` checkpoint, which transformers opens without this package.

    The weights' bytes are not touched. The directory appears complete or not at all.

    Args:
        directory: must not exist yet, or be empty.
        tokenizer_from: a directory whose tokenizer files are copied along.

    Raises:
        UserError: `directory` holds something; `model` is of a class that has no stock partner.
    """
    stock_class = type(model).__name__.removeprefix("TinyTransformer")
    if stock_class not in STOCK_ARCHITECTURES:
        raise UserError(f"{type(model).__name__} has no stock partner; these have: {', '.join(STOCK_ARCHITECTURES)}")
    config = config_to_stock(model.config)
    config.architectures = [stock_class]
    config.dtype = model.dtype
    with atomic_directory(require_free_output(directory)) as staging:
        config.save_pretrained(staging)
        save_file(_to_stock_tensors(model), staging / "model.safetensors", metadata={"format": "pt"})
        if tokenizer_from is not None:
            copy_tokenizer_files(tokenizer_from, staging)


def config_from_stock(stock: BertConfig, source: str | PathLike = "config.json") -> TinyTransformerBertConfig:
    """The Bert family's configuration of the same function.

    Fields that stock `bert` does not read in an encoder either (`use_cache`, `bos_token_id`, ...) are dropped.

    Args:
        source: the file that error messages name.

    Raises:
        UserError: a field's value cannot be expressed (a decoder, relative positions, an unknown activation, ...).
    """
    for field, allowed in _ONLY_VALUES.items():
        value = getattr(stock, field, None)
        if value not in allowed:
            raise UserError(f"{source}: {field} is {value!r}; the Bert family has only {allowed[0]!r}")
    if stock.hidden_act not in ACT2FN:
        raise UserError(f"{source}: hidden_act {stock.hidden_act!r} is unknown; known are {', '.join(sorted(ACT2FN))}")
    try:
        return TinyTransformerBertConfig(**_common_fields(stock))
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}") from error


def config_to_stock(config: TinyTransformerBertConfig) -> BertConfig:
    """The stock configuration of the same function; nothing of ours is lost."""
    return BertConfig(**_common_fields(config))


def stock_class_of(directory: str | PathLike) -> type[TinyTransformerBertPreTrainedModel]:
    """Our class for the one that a stock checkpoint's config.json names in `architectures`.

    Raises:
        UserError: not a stock bert checkpoint, or its class has no partner here.
    """
    directory = Path(directory)
    architectures = read_stock_config(directory).architectures or []
    if len(architectures) != 1 or architectures[0] not in STOCK_ARCHITECTURES:
        raise UserError(
            f"{directory / 'config.json'}: architectures is {architectures}; "
            f"it must name one of {', '.join(STOCK_ARCHITECTURES)}"
        )
    return STOCK_ARCHITECTURES[architectures[0]]


def read_stock_config(directory: str | PathLike) -> BertConfig:
    """The configuration of a stock `bert` checkpoint.

    Raises:
        UserError: no such checkpoint, or a field of the wrong kind.
    """
    directory = Path(directory)
    content = read_config_json(directory)
    file = directory / "config.json"
    if content.get("model_type") != "bert":
        raise UserError(f"{file}: model_type is {content.get('model_type')!r}; a stock bert checkpoint says 'bert'")
    try:
        return BertConfig.from_dict(content)
    except (StrictDataclassError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: {error}") from error


def _common_fields(config: PreTrainedConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in (*_SHARED_FIELDS, *_TASK_FIELDS)}


def _partner_names(num_hidden_layers: int) -> dict[str, str]:
    """`RENAMES` written out: our full parameter name -> stock's."""
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
    """Renames a stock checkpoint's tensors, the trunk's names starting with `model.`."""
    stock = {_modern_stock_name(name): tensor for name, tensor in stock.items()}
    stock.pop("bert.embeddings.position_ids", None)  # a buffer that older versions saved: 0, 1, 2, ...
    if _DECODER_BIAS in stock:
        stock["cls.predictions.bias"] = stock.pop(_DECODER_BIAS)
    partners = {stock_name: ours for ours, stock_name in _partner_names(config.num_hidden_layers).items()}
    if unknown := sorted(stock.keys() - partners.keys()):
        raise UserError(f"{directory}: weight {unknown[0]} ({len(unknown)} such) has no place in the Bert family")
    if config.tie_word_embeddings and "cls.predictions.decoder.weight" in stock:
        decoder = stock.pop("cls.predictions.decoder.weight")
        embeddings = stock.get("bert.embeddings.word_embeddings.weight")
        if embeddings is not None and not torch.equal(decoder, embeddings):
            raise UserError(
                f"{directory}: tie_word_embeddings is true in config.json, but cls.predictions.decoder.weight is not "
                "the word embeddings; say false there to keep both"
            )
    return {partners[name]: tensor for name, tensor in stock.items()}


def _modern_stock_name(name: str) -> str:
    """The name as today's BertForPreTraining would have it."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return f"bert.{name}" if name.startswith(_TRUNK_PREFIXES) else name


def _check_weights(model: TinyTransformerBertPreTrainedModel, given: dict[str, torch.Tensor], directory: Path) -> None:
    """Raises `UserError` where `given` does not fit `model`; warns where it lacks a head."""
    own = model.state_dict()
    for name, tensor in given.items():
        if name in own and own[name].shape != tensor.shape:
            has, asked = list(tensor.shape), list(own[name].shape)
            raise UserError(f"{directory}: weight {name} has shape {has}, config.json asks for {asked}")
    if len(dtypes := {str(tensor.dtype) for tensor in given.values()}) > 1:
        raise UserError(f"{directory}: weights of several dtypes ({', '.join(sorted(dtypes))}); convert them to one")
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    missing = sorted(own.keys() - given.keys() - tied)
    if in_trunk := [name for name in missing if re.match(r"(model\.)?(embed_|layers\.)", name)]:
        raise UserError(f"{directory}: weight {in_trunk[0]} ({len(in_trunk)} such) is missing")
    if missing:
        logger.warning("%s lacks these weights, newly initialised: %s", directory, ", ".join(missing))


def _to_stock_tensors(model: TinyTransformerBertPreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors that stock itself would save: aliases once where embeddings are tied, each where they are not."""
    is_trunk = not hasattr(model, model.base_model_prefix)
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
