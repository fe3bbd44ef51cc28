"""The metrics: each takes references and predictions, is higher for better, and equals scikit-learn's or scipy's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy import stats
from sklearn import metrics

F1 = partial(metrics.f1_score, zero_division=0)


def _correlation(of: Callable, references: np.ndarray, predictions: np.ndarray) -> float:
    """A constant prediction correlates with nothing: 0, where scipy warns and gives nan."""
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return of(references, predictions).statistic


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": metrics.accuracy_score,  # on several labels: the share of rows with all of them right
    "f1": F1,  # of label 1, as GLUE has it
    "f1_macro": partial(F1, average="macro"),
    "f1_micro": partial(F1, average="micro"),
    "matthews": metrics.matthews_corrcoef,
    "pearson": partial(_correlation, stats.pearsonr),
    "spearman": partial(_correlation, stats.spearmanr),
}


def compute_metric(name: str, references: np.ndarray, predictions: np.ndarray) -> float:
    """The one place where a metric's name becomes a figure; 1 is perfect. A prediction that is no number scores 0."""
    if not np.isfinite(predictions).all():
        return 0.0
    return float(METRICS[name](references, predictions))
