"""Conversion of checkpoints: stock transformers architectures to and from ours, and ONNX."""

import re


def rename(name: str, renames: list[tuple[str, str]]) -> str:
    """Return the stock name of one of our weights; `renames` are regular expressions and replacements, in order."""
    for ours, stock in renames:
        name = re.sub(ours, stock, name)
    return name


def stock_name(model_class: type) -> str:
    """Return the name of the stock class that computes what one of our classes computes."""
    stock = [("^TinyTransformerEncoder", "ModernBert"), ("^TinyTransformerDecoder", "ModernBertDecoder")]
    return rename(model_class.__name__, [*stock, ("^TinyTransformerBert", "Bert")])
