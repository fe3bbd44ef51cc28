"""The share of predictions that are right: single-label classification, multiple choice."""

import datasets
import evaluate
from sklearn.metrics import accuracy_score


def compute(predictions, references) -> dict[str, float]:
    """Both (N,) label ids."""
    return {"accuracy": float(accuracy_score(references, predictions))}


class Accuracy(evaluate.Metric):
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
