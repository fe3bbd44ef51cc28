"""`python -m hf_tiny_transformer import | export | attend | verify | push`: to other formats and back, attention drawn,
models checked and published."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from .attend_command import add_attend_command
from .push import add_push_command
from .runs import UserError, run_cli
from .stock import export_stock, import_stock
from .verify import add_verify_command

EXPORT_HELP = "our checkpoint -> one that needs no code of ours"
FORMAT_HELP = "stock: transformers' own bert or modernbert; onnx: in transformers.js' layout"


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


def _parser() -> Parser:
    parser = Parser(prog="python -m hf_tiny_transformer", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    import_command = commands.add_parser("import", help="stock bert checkpoint -> Bert family", allow_abbrev=False)
    import_command.add_argument("--from", dest="source", type=Path, required=True, help="stock model directory")
    import_command.add_argument("--output", type=Path, required=True, help="new directory")
    import_command.set_defaults(run=lambda given: _report(import_stock(given.source, given.output), given.output))

    export_command = commands.add_parser("export", help=EXPORT_HELP, allow_abbrev=False)
    export_command.add_argument("--format", choices=["stock", "onnx"], required=True, help=FORMAT_HELP)
    export_command.add_argument("--model", dest="source", type=Path, required=True, help="our model directory")
    export_command.add_argument("--output", type=Path, required=True, help="new directory")
    export_command.add_argument("--int8", action="store_true", help="onnx: also a file with 8-bit weights")
    export_command.set_defaults(run=_export)

    add_attend_command(commands)
    add_verify_command(commands)
    add_push_command(commands)
    return parser


def _export(given: argparse.Namespace) -> None:
    if given.format == "stock":
        if given.int8:
            raise UserError("--int8 goes with --format onnx")
        _report(export_stock(given.source, given.output), given.output)
        return
    from .onnx_export import export_onnx  # slow to import

    report = export_onnx(given.source, given.output, int8=given.int8)
    _report(report.model, given.output)
    print(f"largest difference between onnxruntime and torch: {report.difference:.1e}")
    if given.int8:
        print(f"with 8-bit weights: {report.int8_error:.2f} standard deviations of the output (root mean square)")


def _report(model: PreTrainedModel, output: Path) -> None:
    print(f"{output}: {type(model).__name__}, {model.num_parameters():,} parameters, written")


if __name__ == "__main__":
    sys.exit(run_cli(main))
