"""Between our checkpoints and stock ones, directory to directory: what `import` and `export --format stock` do."""

import copy
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from .checkpoint_files import copy_tokenizer_files, open_ours
from .conversion_bert import config_to_stock, load_stock_bert, save_stock_bert, stock_class_of
from .conversion_modernbert import STOCK_CLASSES, stock_config, to_stock
from .modeling_bert import TinyTransformerBertPreTrainedModel
from .modeling_seq2seq import TinyTransformerSeq2SeqPreTrainedModel
from .runs import UserError, atomic_directory, require_free_output

NO_STOCK_SEQ2SEQ = (
    "no stock encoder-decoder computes what Seq2Seq does (rotary positions, LayerNorm, gated feed-forward networks, a "
    "layer before the output): T5 and T5Gemma have RMSNorm, Bart and mBart added positions and ungated networks; "
    "publish the directory as it is, it carries its code (trust_remote_code=True)"
)


def import_stock(source: Path, output: Path) -> PreTrainedModel:
    """Writes the stock `bert` checkpoint `source` as one of the Bert family, with its tokenizer; returns the model.

    Raises:
        UserError: as `load_stock_bert`; or `output` already holds something.
    """
    require_free_output(output)
    model = load_stock_bert(source, stock_class_of(source))
    with atomic_directory(output) as staging:
        model.save_pretrained(staging)
        copy_tokenizer_files(source, staging)
    return model


def export_stock(source: Path, output: Path) -> PreTrainedModel:
    """Writes our checkpoint `source` as a stock one, its tokenizer along, and returns our model.

    Bert becomes `bert`, Encoder `modernbert`, Decoder `modernbert-decoder`.

    Raises:
        UserError: `source` is not a whole checkpoint of ours, or none that stock can express; or `output` already holds
            something.
    """
    require_free_output(output)
    model = open_ours(source)
    if isinstance(model, TinyTransformerBertPreTrainedModel):
        save_stock_bert(model, output, tokenizer_from=source)
        return model
    if isinstance(model, TinyTransformerSeq2SeqPreTrainedModel):
        raise UserError(f"{source}: {NO_STOCK_SEQ2SEQ}")
    try:
        stock = to_stock(model)
    except UserError as error:
        raise UserError(f"{source / 'config.json'}: {error}") from error
    with atomic_directory(output) as staging:
        stock.save_pretrained(staging)
        copy_tokenizer_files(source, staging)
    return model


def config_for_others(model: PreTrainedModel) -> PreTrainedConfig:
    """For a program that reads config.json and has another way to compute the model: the stock config of the same
    function, or ours where there is none."""
    try:
        if isinstance(model, TinyTransformerBertPreTrainedModel):
            config, name = config_to_stock(model.config), type(model).__name__.removeprefix("TinyTransformer")
        else:
            config, name = stock_config(model), STOCK_CLASSES[type(model)].__name__
    except UserError:
        config = copy.deepcopy(model.config)
        vars(config).pop("auto_map", None)  # its code does not lie there
        return config
    config.architectures = [name]
    return config
