"""Several labels a text: F1 over all decisions, F1 averaged over labels, and the share of texts with all right."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score


def compute(predictions, references) -> dict[str, float]:
    """Both (N, labels), 1 where a text carries the label. A label that is nowhere has F1 0."""
    predictions, references = np.asarray(predictions, dtype=int), np.asarray(references, dtype=int)
    return {
        "micro_f1": float(f1_score(references, predictions, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
        "exact_match": float(accuracy_score(references, predictions)),
    }


class Multilabel(evaluate.Metric):
    """`compute` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        labels = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=compute.__doc__,
            features=datasets.Features({"predictions": labels, "references": labels}),
        )

    def _compute(self, predictions, references):
        return compute(predictions, references)
