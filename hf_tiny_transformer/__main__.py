"""`python -m hf_tiny_transformer import | export | attend`: stock checkpoints and the Bert family; attention drawn."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from .attend_command import add_attend_command
from .conversion_bert import (
    STOCK_ARCHITECTURES,
    copy_tokenizer_files,
    load_stock_bert,
    read_config_json,
    save_stock_bert,
    stock_class_of,
)
from .modeling_bert import TinyTransformerBertPreTrainedModel
from .runs import UserError, atomic_directory, require_free_output, run_cli


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, like that of every other wrong input."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`, where argparse would print its usage and exit."""
        raise UserError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that `arguments` (default: the shell's) name.

    Raises:
        UserError: wrong arguments, an unreadable or unsuitable checkpoint, an output that cannot be written.
    """
    parsed = _parser().parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        parsed.run(parsed)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{where}{error.strerror or error}") from error


def import_stock(source: Path, output: Path) -> TinyTransformerBertPreTrainedModel:
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


def export_stock(source: Path, output: Path) -> TinyTransformerBertPreTrainedModel:
    """Writes the Bert family's checkpoint `source` as a stock one, its tokenizer along, and returns the model.

    Raises:
        UserError: `source` is not a whole checkpoint of the Bert family; or `output` already holds something.
    """
    require_free_output(output)
    model = _load_ours(source)
    save_stock_bert(model, output, tokenizer_from=source)
    return model


def _load_ours(directory: Path) -> TinyTransformerBertPreTrainedModel:
    """Opens a checkpoint of the Bert family as the class it was saved from; every weight must come from the file."""
    config = read_config_json(directory)
    classes = {model_class.__name__: model_class for model_class in STOCK_ARCHITECTURES.values()}
    if config.get("model_type") != "tiny_transformer_bert":
        raise UserError(
            f"{directory / 'config.json'}: model_type is {config.get('model_type')!r}; "
            "--format stock exports the Bert family ('tiny_transformer_bert') only"
        )
    architectures = config.get("architectures") or []
    if len(architectures) != 1 or architectures[0] not in classes:
        raise UserError(
            f"{directory / 'config.json'}: architectures is {architectures}; it must name one of {', '.join(classes)}"
        )
    try:
        model, loading = classes[architectures[0]].from_pretrained(
            directory, use_safetensors=True, output_loading_info=True
        )
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{directory}: cannot be opened ({error})") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if loading[kind]:
            raise UserError(f"{directory}: {kind.replace('_keys', '')} weights: {', '.join(sorted(loading[kind]))}")
    return model


def _parser() -> Parser:
    parser = Parser(prog="python -m hf_tiny_transformer", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    import_command = commands.add_parser("import", help="stock bert checkpoint -> Bert family", allow_abbrev=False)
    import_command.add_argument("--from", dest="source", type=Path, required=True, help="stock model directory")
    import_command.add_argument("--output", type=Path, required=True, help="new directory")
    import_command.set_defaults(run=lambda given: _report(import_stock(given.source, given.output), given.output))

    export_command = commands.add_parser("export", help="Bert family -> stock bert checkpoint", allow_abbrev=False)
    export_command.add_argument("--format", choices=["stock"], required=True, help="stock: transformers' own bert")
    export_command.add_argument("--model", dest="source", type=Path, required=True, help="our model directory")
    export_command.add_argument("--output", type=Path, required=True, help="new directory")
    export_command.set_defaults(run=lambda given: _report(export_stock(given.source, given.output), given.output))

    add_attend_command(commands)
    return parser


def _report(model: TinyTransformerBertPreTrainedModel, output: Path) -> None:
    print(f"{output}: {type(model).__name__}, {model.num_parameters():,} parameters, written")


if __name__ == "__main__":
    sys.exit(run_cli(main))
