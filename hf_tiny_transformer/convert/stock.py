"""The commands `import` and `export`: convert directories between our checkpoints and stock ones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar, cast

import torch
import transformers
from torch import nn
from transformers import BertConfig, ModernBertConfig, ModernBertDecoderConfig, PreTrainedConfig, PreTrainedModel

import hf_tiny_transformer

from ..common.arguments import CommandParser
from ..common.checkpoints import copy_tokenizer_files, load_model, read_config, saved_class
from ..common.errors import UserError
from ..common.files import atomic_directory, only_process, require_free_output
from ..configuration_base import TinyTransformerConfig
from ..configuration_bert import TinyTransformerBertConfig
from ..configuration_decoder import TinyTransformerDecoderConfig
from ..configuration_encoder import TinyTransformerEncoderConfig
from ..families import FAMILIES
from ..modeling_bert import TinyTransformerBertPreTrainedModel
from ..modeling_decoder import TinyTransformerDecoderForSequenceClassification
from . import bert, modernbert, stock_name

ModelT = TypeVar("ModelT", bound=PreTrainedModel)

STOCK_FAMILIES: dict[type[PreTrainedConfig], type[TinyTransformerConfig]] = {  # stock config -> our config
    BertConfig: TinyTransformerBertConfig,
    ModernBertConfig: TinyTransformerEncoderConfig,
    ModernBertDecoderConfig: TinyTransformerDecoderConfig,
}
FORMATS = '"stock" is transformers\' bert, modernbert or modernbert-decoder; "onnx" has the layout of transformers.js.'


def export(argv: list[str]) -> None:
    """Run the command `export`."""
    parser = CommandParser("hf-tiny-transformer export", "Convert our model to one that needs none of our code.")
    parser.add_argument("--model", type=Path, required=True, help="Directory of our model.")
    parser.add_argument("--format", type=Literal["stock", "onnx"], required=True, help=f"Format to write. {FORMATS}")
    parser.add_argument("--output", type=Path, required=True, help="New directory.")
    parser.add_argument("--int8", action="store_true", help="Also write an ONNX file with 8-bit weights.")
    values = parser.parse(argv)
    if values.format == "onnx":
        from .onnx import export_onnx  # needs the extra `export`

        model, difference = export_onnx(values.model, values.output, int8=values.int8)
        _report(model, values.output)
        print(f"largest difference between onnxruntime and torch: {difference:.1e}")
        return
    if values.int8:
        raise UserError("--int8 requires --format onnx")
    require_free_output(values.output)
    model = open_ours(values.model)
    try:
        stock = to_stock(model)
    except UserError as error:
        raise UserError(f"{values.model / 'config.json'}: {error}") from None
    _write(stock, values.model, values.output)
    _report(model, values.output)


def import_(argv: list[str]) -> None:
    """Run the command `import`."""
    parser = CommandParser(
        "hf-tiny-transformer import", "Convert a stock checkpoint (bert, modernbert, modernbert-decoder) to ours."
    )
    parser.add_argument("--from", type=Path, required=True, help="Directory of the stock checkpoint.")
    parser.add_argument("--output", type=Path, required=True, help="New directory.")
    values = parser.parse(argv)
    source: Path = values["from"]
    require_free_output(values.output)
    config = read_stock_config(source, "--from")
    names, known = config.architectures or [], stock_architectures(type(config))
    if len(names) != 1 or names[0] not in known:
        raise UserError(f"{source / 'config.json'}: architectures is {names}; expected one of {', '.join(known)}")
    model = load_stock(source, known[names[0]], flag="--from", exact=True)
    _write(model, source, values.output)
    _report(model, values.output)


def stock_architectures(config_class: type[PreTrainedConfig]) -> dict[str, type[PreTrainedModel]]:
    """Return our classes by the names of the stock classes with this config."""
    classes = [getattr(hf_tiny_transformer, name) for name in FAMILIES[STOCK_FAMILIES[config_class]].values()]
    return {stock_name(model_class): model_class for model_class in classes}


def read_stock_config(directory: str | Path, flag: str) -> PreTrainedConfig:
    """Return the config of a stock checkpoint that we can convert."""
    config = read_config(directory, flag=flag)
    if type(config) not in STOCK_FAMILIES:
        known = ", ".join(config_class.model_type for config_class in STOCK_FAMILIES)
        file = Path(directory) / "config.json"
        raise UserError(f"{file}: model_type is {config.model_type!r}; expected a stock checkpoint of type {known}")
    return config


def config_from_stock(stock: PreTrainedConfig, source: str | Path = "config.json") -> PreTrainedConfig:
    """Return our config of the same function, or raise a UserError if there is none."""
    return (bert if isinstance(stock, BertConfig) else modernbert).config_from_stock(stock, source)


def load_stock(
    directory: str | Path, model_class: type[ModelT], *, flag: str = "--init", seed: int = 0, exact: bool = False
) -> ModelT:
    """Load a stock checkpoint as one of our classes, in evaluation mode and in the dtype of the file.

    A head or pooler that the checkpoint lacks is initialised from `seed` and named in the log; a head that
    `model_class` lacks is dropped, or refused if `exact`. `flag` is the flag that named the directory.
    """
    stock_config = read_stock_config(directory, flag)
    config = config_from_stock(stock_config, source=Path(directory) / "config.json")
    stock_class = getattr(transformers, stock_name(model_class))
    stock = load_model(
        directory, stock_class, stock_config, flag=flag, new_head=True, exact=exact, seed=seed, dtype="auto"
    )
    head = stock.get_output_embeddings() if config.tie_word_embeddings else None
    words = stock.get_input_embeddings()
    if isinstance(head, nn.Linear) and not torch.equal(head.weight, cast(torch.Tensor, words.weight)):
        raise UserError(
            f"{directory}: tie_word_embeddings is true in config.json, but the output matrix differs from the word "
            "embeddings; set it to false to keep both"
        )
    model = model_class._from_config(config, dtype=stock.dtype)
    converter = bert if isinstance(stock_config, BertConfig) else modernbert
    try:
        model.load_state_dict(converter.our_weights(model, stock.state_dict()))
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None
    return model.eval()


def open_ours(source: Path) -> PreTrainedModel:
    """Load a checkpoint of one of our families, with exactly the weights of the class it was saved from."""
    config = read_config(source)
    if type(config) not in FAMILIES:
        ours = ", ".join(config_class.model_type for config_class in FAMILIES)
        raise UserError(f"{source / 'config.json'}: model_type is {config.model_type!r}; expected one of {ours}")
    return load_model(source, saved_class(source, config), config, exact=True, dtype="auto")


def stock_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the stock config of the same function, or raise a UserError if there is none."""
    if isinstance(model, TinyTransformerBertPreTrainedModel):
        return bert.stock_config(model)
    return modernbert.stock_config(model)


def to_stock(model: PreTrainedModel) -> PreTrainedModel:
    """Return the stock model of the same function and dtype, in evaluation mode, as of `stock_config`."""
    config = stock_config(model)
    assert config.architectures is not None  # `stock_config` names the class
    stock: PreTrainedModel = getattr(transformers, config.architectures[0])._from_config(config, dtype=model.dtype)
    if isinstance(model, TinyTransformerBertPreTrainedModel):
        weights = bert.stock_weights(model)
    else:
        weights = modernbert.stock_weights(model, model.state_dict())
    if isinstance(model, TinyTransformerDecoderForSequenceClassification):
        # in stock, one field gives both layers of the head a bias; our first layer has none
        weights["head.dense.bias"] = torch.zeros(config.hidden_size)
    stock.load_state_dict(weights)
    if model.can_generate():
        stock.generation_config = model.generation_config
    return stock.eval()


def _write(model: PreTrainedModel, source: Path, output: Path) -> None:
    with only_process(output, "--output"), atomic_directory(output) as staging:
        model.save_pretrained(staging)
        copy_tokenizer_files(source, staging)


def _report(model: PreTrainedModel, output: Path) -> None:
    print(f"{output}: {type(model).__name__}, {model.num_parameters():,} parameters, written")
