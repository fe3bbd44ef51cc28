"""Metrics: one `evaluate` module per folder, which loads from disk without a network.

    evaluate.load("finetune/metrics/glue", "mrpc").compute(predictions=[...], references=[...])
    finetune.metrics.score("glue/mrpc", [...], [...])

Both call the `compute` function of `NAME/NAME.py`; `score` does not go through evaluate's cache files. All scores are
between 0 and 1 (correlations between -1 and 1), also where the original is in percent, and higher is better. A
correlation with a constant is 0, as Matthews' is by definition, so that a mean over seeds stays a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def score(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Return the scores by a module, like `accuracy`, or by `glue/TASK` with a task's name on the Hub."""
    module, *task = name.split("/")
    return import_module(f"{__name__}.{module}.{module}").compute(predictions, references, *task)


def evaluate_module(compute: Callable[..., dict[str, float]], prediction: str, reference: str = "") -> type:
    """Return the class that `evaluate.load` looks for in a module.

    Args:
        compute: The module's function; if the module has `TASKS`, it takes one of them as a third argument.
        prediction: The type of a prediction for `datasets.Value`; of a list, with "[]" behind it.
        reference: The type of a reference, if it is another.
    """
    import datasets
    import evaluate

    def feature(name: str) -> Any:
        value = datasets.Value(name.removesuffix("[]"))
        return datasets.Sequence(value) if name.endswith("[]") else value

    tasks = compute.__globals__.get("TASKS")
    features = {"predictions": feature(prediction), "references": feature(reference or prediction)}

    class Module(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            if tasks is not None and self.config_name not in tasks:
                raise KeyError(f"no GLUE task {self.config_name!r}; expected {', '.join(tasks)}")
            about = {"description": compute.__globals__["__doc__"], "inputs_description": compute.__doc__}
            return evaluate.MetricInfo(citation="", features=datasets.Features(features), **about)

        def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
            return compute(predictions, references, *(() if tasks is None else (self.config_name,)))

    Module.__name__ = compute.__module__.rpartition(".")[2].title()  # evaluate's name of the metric
    return Module
