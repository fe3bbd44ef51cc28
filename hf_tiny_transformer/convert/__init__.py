"""Conversion of checkpoints: stock transformers architectures to and from ours, and ONNX."""

import re


def rename(name: str, renames: list[tuple[str, str]]) -> str:
    """Return the stock name of one of our weights; `renames` are regular expressions and replacements, in order."""
    for ours, stock in renames:
        name = re.sub(ours, stock, name)
    return name
