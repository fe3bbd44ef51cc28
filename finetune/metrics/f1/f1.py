"""Macro-averaged F1: single-label classification where labels are unequally frequent and all count the same."""

import datasets
import evaluate
from sklearn.metrics import f1_score


def compute(predictions, references) -> dict[str, float]:
    """Both (N,) label ids. A label that is neither predicted nor right anywhere is left out of the mean."""
    return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0))}


class F1(evaluate.Metric):
    """`compute` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        label = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=compute.__doc__,
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, predictions, references):
        return compute(predictions, references)
