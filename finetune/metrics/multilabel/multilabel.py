"""Several labels per text: F1 over all decisions, F1 averaged over labels, share of texts with all labels correct."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import accuracy_score, f1_score

from finetune.metrics import evaluate_module


def compute(predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Score (N, labels) matrices with 1 where a text has the label. A label that never occurs has F1 0."""
    predictions, references = np.asarray(predictions, dtype=int), np.asarray(references, dtype=int)
    return {
        "micro_f1": float(f1_score(references, predictions, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0)),
        "exact_match": float(accuracy_score(references, predictions)),
    }


Multilabel = evaluate_module(compute, "int64[]")
