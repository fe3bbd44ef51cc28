"""The commands `import` and `export`: convert directories between our checkpoints and stock ones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from ..common.arguments import CommandParser
from ..common.checkpoints import copy_tokenizer_files, load_model, read_config, saved_class
from ..common.errors import UserError
from ..common.files import atomic_directory, only_process, require_free_output
from ..families import FAMILIES
from ..modeling_bert import TinyTransformerBertPreTrainedModel
from ..modeling_decoder import TinyTransformerDecoderForSequenceClassification
from . import bert, modernbert

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
    parser = CommandParser("hf-tiny-transformer import", "Convert a stock bert checkpoint to the Bert family.")
    parser.add_argument("--from", type=Path, required=True, help="Directory of the stock checkpoint.")
    parser.add_argument("--output", type=Path, required=True, help="New directory.")
    values = parser.parse(argv)
    source: Path = values["from"]
    require_free_output(values.output)
    names = bert.read_stock_config(source, "--from").architectures or []
    if len(names) != 1 or names[0] not in bert.STOCK_ARCHITECTURES:
        known = ", ".join(bert.STOCK_ARCHITECTURES)
        raise UserError(f"{source / 'config.json'}: architectures is {names}; expected one of {known}")
    model = bert.load_stock_bert(source, bert.STOCK_ARCHITECTURES[names[0]], flag="--from", exact=True)
    _write(model, source, values.output)
    _report(model, values.output)


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
