"""Convert directories between our checkpoints and stock ones, for `import` and `export --format stock`."""

from __future__ import annotations

import copy
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from ..common.checkpoints import copy_tokenizer_files, load_model, read_config, saved_class
from ..common.errors import UserError
from ..common.files import atomic_directory, require_free_output
from ..families import FAMILIES
from ..modeling_bert import TinyTransformerBertPreTrainedModel
from ..modeling_seq2seq import TinyTransformerSeq2SeqPreTrainedModel
from . import bert, modernbert

NO_STOCK_SEQ2SEQ = (
    "no stock encoder-decoder computes the same function as Seq2Seq: T5 and T5Gemma have RMSNorm, Bart and mBart have "
    "learned positions and ungated networks; publish the directory as it is, with its code (trust_remote_code=True)"
)


def open_ours(source: Path) -> PreTrainedModel:
    """Load a checkpoint of one of our families as the class it was saved from, in the dtype of its files.

    Raises:
        UserError: It is not one of our checkpoints, or its weights are not exactly those of the class.
    """
    config = read_config(source)
    if type(config) not in FAMILIES:
        ours = ", ".join(config_class.model_type for config_class in FAMILIES)
        raise UserError(f"{source / 'config.json'}: model_type is {config.model_type!r}; expected one of {ours}")
    return load_model(source, saved_class(source, config), config, exact=True, dtype="auto")


def import_stock(source: Path, output: Path) -> PreTrainedModel:
    """Write a stock `bert` checkpoint as a checkpoint of the Bert family, with its tokenizer, and return the model.

    Raises:
        UserError: `source` cannot be converted, or `output` is not empty.
    """
    require_free_output(output)
    names = bert.read_stock_config(source, "--from").architectures or []
    if len(names) != 1 or names[0] not in bert.STOCK_ARCHITECTURES:
        known = ", ".join(bert.STOCK_ARCHITECTURES)
        raise UserError(f"{source / 'config.json'}: architectures is {names}; expected one of {known}")
    model = bert.load_stock_bert(source, bert.STOCK_ARCHITECTURES[names[0]], flag="--from", exact=True)
    _write(model, source, output)
    return model


def export_stock(source: Path, output: Path) -> PreTrainedModel:
    """Write one of our checkpoints as stock `bert`, `modernbert` or `modernbert-decoder`, and return our model.

    Raises:
        UserError: `source` is not one of our complete checkpoints, stock cannot express it, or `output` is not empty.
    """
    require_free_output(output)
    model = open_ours(source)
    if isinstance(model, TinyTransformerSeq2SeqPreTrainedModel):
        raise UserError(f"{source}: {NO_STOCK_SEQ2SEQ}")
    try:
        stock = (bert if isinstance(model, TinyTransformerBertPreTrainedModel) else modernbert).to_stock(model)
    except UserError as error:
        raise UserError(f"{source / 'config.json'}: {error}") from None
    _write(stock, source, output)
    return model


def portable_config(model: PreTrainedModel) -> PreTrainedConfig:
    """Return the config for a program that computes the model in its own way: the stock one if possible, else ours."""
    try:
        return (bert if isinstance(model, TinyTransformerBertPreTrainedModel) else modernbert).stock_config(model)
    except UserError:
        config = copy.deepcopy(model.config)
        vars(config).pop("auto_map", None)  # its code is not stored there
        return config


def _write(model: PreTrainedModel, source: Path, output: Path) -> None:
    with atomic_directory(output) as staging:
        model.save_pretrained(staging)
        copy_tokenizer_files(source, staging)
