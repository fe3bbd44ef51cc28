"""GLUE's official metrics (Wang et al. 2019, table 1), under the names of upstream's `glue` module."""

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def _accuracy(predictions, references) -> dict[str, float]:
    return {"accuracy": float(accuracy_score(references, predictions))}


def _accuracy_and_f1(predictions, references) -> dict[str, float]:
    """F1 is that of label 1, "is a paraphrase"."""
    f1 = f1_score(references, predictions, pos_label=1, average="binary", zero_division=0)
    return {**_accuracy(predictions, references), "f1": float(f1)}


def _matthews(predictions, references) -> dict[str, float]:
    return {"matthews_correlation": float(matthews_corrcoef(references, predictions))}


def _correlations(predictions, references) -> dict[str, float]:
    """0 where either side is constant, for which the formulas have 0 / 0; nan stays nan."""
    predictions, references = np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return {"pearson": 0.0, "spearmanr": 0.0}
    return {
        "pearson": float(pearsonr(predictions, references).statistic),
        "spearmanr": float(spearmanr(predictions, references).statistic),
    }


TASKS = {
    "cola": _matthews,
    "sst2": _accuracy,
    "mrpc": _accuracy_and_f1,
    "stsb": _correlations,
    "qqp": _accuracy_and_f1,
    "mnli": _accuracy,
    "mnli_matched": _accuracy,
    "mnli_mismatched": _accuracy,
    "qnli": _accuracy,
    "rte": _accuracy,
    "wnli": _accuracy,
    "ax": _matthews,
}


def compute(predictions, references, config_name) -> dict[str, float]:
    """Both (N,): label ids, for stsb numbers."""
    return TASKS[config_name](predictions, references)


class Glue(evaluate.Metric):
    """`compute` for `evaluate.load(PATH, TASK)`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in TASKS:
            raise KeyError(f"no GLUE task {self.config_name!r}; known are {', '.join(TASKS)}")
        value = datasets.Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=compute.__doc__,
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions, references):
        return compute(predictions, references, self.config_name)
