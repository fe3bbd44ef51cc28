"""Convert stock `bert` checkpoints to the Bert family and back; the bytes of the weights are unchanged."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TypeVar

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import BertConfig, PreTrainedConfig
from transformers.activations import ACT2FN

import hf_tiny_transformer

from ..common.checkpoints import config_problem, load_model, read_config
from ..common.errors import UserError
from ..configuration_bert import TinyTransformerBertConfig
from ..families import FAMILIES
from ..modeling_bert import TinyTransformerBertPreTrainedModel
from . import rename

BertModelT = TypeVar("BertModelT", bound=TinyTransformerBertPreTrainedModel)

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

# name of a stock class -> our class
STOCK_ARCHITECTURES: dict[str, type[TinyTransformerBertPreTrainedModel]] = {
    name.removeprefix("TinyTransformer"): getattr(hf_tiny_transformer, name)
    for name in FAMILIES[TinyTransformerBertConfig].values()
}

# stock's names of one bias; with untied embeddings they are two parameters, and its forward uses the second
_BIAS, _DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
_SHARED_FIELDS = {field.name for field in fields(TinyTransformerBertConfig)} - {
    f.name for f in fields(PreTrainedConfig)
}
_SHARED_FIELDS |= {"id2label", "label2id", "problem_type"}
# the only values with which stock computes the same function as our family
_ONLY_VALUES = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}


def load_stock_bert(
    directory: str | Path, model_class: type[BertModelT], *, flag: str = "--init", seed: int = 0, exact: bool = False
) -> BertModelT:
    """Load a stock `bert` checkpoint as a class of the Bert family, in evaluation mode and in the dtype of the file.

    A head or pooler that the checkpoint lacks is initialised from `seed` and named in the log; a head that
    `model_class` lacks is dropped, or refused if `exact`. `flag` is the flag that named the directory.
    """
    stock_config = read_stock_config(directory, flag)
    config = config_from_stock(stock_config, source=Path(directory) / "config.json")
    stock_class = getattr(transformers, model_class.__name__.removeprefix("TinyTransformer"))
    stock = load_model(
        directory, stock_class, stock_config, flag=flag, new_head=True, exact=exact, seed=seed, dtype="auto"
    )
    tensors: dict[str, torch.Tensor] = stock.state_dict()
    head = tensors.get("cls.predictions.decoder.weight") if config.tie_word_embeddings else None
    if head is not None and not torch.equal(head, tensors["bert.embeddings.word_embeddings.weight"]):
        raise UserError(
            f"{directory}: tie_word_embeddings is true in config.json, but cls.predictions.decoder.weight differs from "
            "the word embeddings; set it to false to keep both"
        )
    if _DECODER_BIAS in tensors:
        tensors[_BIAS] = tensors[_DECODER_BIAS]
    model = model_class._from_config(config, dtype=stock.dtype)
    model.load_state_dict({name: tensors[rename(name, RENAMES)] for name in model.state_dict()})
    return model.eval()


def stock_weights(model: TinyTransformerBertPreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the weights under their stock names."""
    weights = {rename(name, RENAMES): tensor for name, tensor in model.state_dict().items()}
    return weights | ({_DECODER_BIAS: weights[_BIAS]} if _BIAS in weights else {})


def read_stock_config(directory: str | Path, flag: str) -> BertConfig:
    """Return the config of a stock `bert` checkpoint."""
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
    return BertConfig(**shared, architectures=[type(model).__name__.removeprefix("TinyTransformer")])
