"""The commands `export` and `import`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from ..common.arguments import CommandParser
from ..common.errors import UserError
from .stock import export_stock, import_stock


def export(argv: list[str]) -> None:
    """Run the command `export`.

    Raises:
        UserError: Bad arguments, or a model that cannot be exported.
    """
    parser = CommandParser("hf-tiny-transformer export", "Convert our model to one that needs none of our code.")
    parser.add_argument("--model", type=Path, required=True, help="Directory of our model.")
    formats = (
        '"stock" is transformers\' bert, modernbert or modernbert-decoder; "onnx" has the layout of transformers.js.'
    )
    parser.add_argument("--format", type=Literal["stock", "onnx"], required=True, help=f"Format to write. {formats}")
    parser.add_argument("--output", type=Path, required=True, help="New directory.")
    parser.add_argument("--int8", action="store_true", help="Also write an ONNX file with 8-bit weights.")
    values = parser.parse(argv)
    if values.format == "stock":
        if values.int8:
            raise UserError("--int8 requires --format onnx")
        _report(export_stock(values.model, values.output), values.output)
        return
    from .onnx import export_onnx  # needs the extra `export`

    model, difference = export_onnx(values.model, values.output, int8=values.int8)
    _report(model, values.output)
    print(f"largest difference between onnxruntime and torch: {difference:.1e}")


def import_(argv: list[str]) -> None:
    """Run the command `import`.

    Raises:
        UserError: Bad arguments, or a checkpoint that cannot be imported.
    """
    parser = CommandParser("hf-tiny-transformer import", "Convert a stock bert checkpoint to the Bert family.")
    parser.add_argument("--from", type=Path, required=True, help="Directory of the stock checkpoint.")
    parser.add_argument("--output", type=Path, required=True, help="New directory.")
    values = parser.parse(argv)
    _report(import_stock(values["from"], values.output), values.output)


def _report(model: PreTrainedModel, output: Path) -> None:
    print(f"{output}: {type(model).__name__}, {model.num_parameters():,} parameters, written")
