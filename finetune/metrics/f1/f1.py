"""Macro-averaged F1: single-label classification where labels differ in frequency and count the same."""

from sklearn.metrics import f1_score

from finetune.metrics import evaluate_module


def compute(predictions, references) -> dict[str, float]:
    """Score label ids, both (N,). A label that occurs in neither is not part of the mean."""
    return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0))}


F1 = evaluate_module(compute, "int64")
