"""The share of correct predictions: single-label classification, multiple choice."""

from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score

from finetune.metrics import evaluate_module


def compute(predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Score label ids, both (N,)."""
    return {"accuracy": float(accuracy_score(references, predictions))}


Accuracy = evaluate_module(compute, "int64")
