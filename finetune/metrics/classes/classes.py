"""Scores of single-label classification that weight rare classes differently."""

from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, matthews_corrcoef

from finetune.metrics import evaluate_module


def compute(predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Score label ids, both (N,); macro F1 is the mean over the classes that occur on either side."""
    return {
        "accuracy": float(accuracy_score(references, predictions)),
        "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
        "balanced_accuracy": float(balanced_accuracy_score(references, predictions)),
        "matthews_correlation": float(matthews_corrcoef(references, predictions)),
    }


Classes = evaluate_module(compute, "int64")
