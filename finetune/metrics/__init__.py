"""The bench's metrics: one `evaluate` module a folder, each a file of its own that loads from disk without a network.

    evaluate.load("finetune/metrics/glue", "mrpc").compute(predictions=[...], references=[...])
    finetune.metrics.score("glue/mrpc", [...], [...])

Both run the same `compute` function of `NAME/NAME.py`; `score` spares the round trip through evaluate's cache files.
All scores lie between 0 and 1 (correlations between -1 and 1), also where the original counts in percent, and higher is
better. A correlation with something constant is 0, as Matthews' is by definition: a mean over seeds stays a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = ("accuracy", "bleu", "f1", "glue", "multilabel", "ner", "rouge", "squad")


def score(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Scores by name, as the module's docstring says.

    Args:
        name: a module, like `accuracy`, or `glue/TASK` with a task named as on the Hub (cola, stsb, mnli_matched, ...).

    Raises:
        ValueError: no such metric, nothing to score, or not one reference for each prediction.
    """
    module, *config_name = name.split("/", 1)
    if name not in names():
        raise ValueError(f"no metric {name!r}; known are {', '.join(names())}")
    if len(predictions) != len(references):
        raise ValueError(f"metric {name}: {len(predictions)} predictions, but {len(references)} references")
    if len(predictions) == 0:
        raise ValueError(f"metric {name}: nothing to score")
    return _module(module).compute(predictions, references, *config_name)


def names() -> list[str]:
    """All that `score` knows."""
    tasks = [f"glue/{task}" for task in _module("glue").TASKS]
    return sorted([*(module for module in MODULES if module != "glue"), *tasks])


def path(module: str) -> Path:
    """The folder that `evaluate.load` takes."""
    return Path(__file__).parent / module


def _module(module: str) -> ModuleType:
    return import_module(f"{__name__}.{module}.{module}")
