"""GLUE's official metrics (Wang et al. 2019, table 1), with the names of evaluate's own `glue` module."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from finetune.metrics import evaluate_module
from finetune.metrics.accuracy.accuracy import compute as _accuracy


def _accuracy_and_f1(predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """F1 is that of label 1, "paraphrase"."""
    return {**_accuracy(predictions, references), "f1": float(f1_score(references, predictions, zero_division=0))}


def _matthews(predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


def _correlations(predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Return 0 if either side is constant, where the formulas are 0 / 0; NaN stays NaN."""
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return {"pearson": 0.0, "spearmanr": 0.0}
    both = {"pearson": pearsonr(predictions, references), "spearmanr": spearmanr(predictions, references)}
    return {name: float(found.statistic) for name, found in both.items()}


TASKS = {
    **dict.fromkeys(("sst2", "mnli", "mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli"), _accuracy),
    **dict.fromkeys(("mrpc", "qqp"), _accuracy_and_f1),
    **dict.fromkeys(("cola", "ax"), _matthews),
    "stsb": _correlations,
}


def compute(predictions: ArrayLike, references: ArrayLike, config_name: str) -> dict[str, float]:
    """Score label ids or, for stsb, numbers, both (N,)."""
    return TASKS[config_name](predictions, references)


Glue = evaluate_module(compute, "float64")
