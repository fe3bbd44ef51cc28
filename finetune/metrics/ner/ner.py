"""Precision, recall and F1 of whole entities, by seqeval, which counts as CoNLL's script conlleval does."""

import datasets
import evaluate
from seqeval.metrics import accuracy_score, classification_report


def compute(predictions, references) -> dict[str, float]:
    """Both N lists of tags, one a word: O, B-PER, I-PER, ... in IOB1 or IOB2. An entity is right when its type and both
    ends are; `accuracy` is that of single tags, and `f1_PER` and so on are those of one type."""
    report = classification_report(list(references), list(predictions), output_dict=True, zero_division=0)
    overall = report["micro avg"]
    scores = {
        "f1": overall["f1-score"],
        "precision": overall["precision"],
        "recall": overall["recall"],
        "accuracy": accuracy_score(list(references), list(predictions)),
    }
    scores |= {f"f1_{name}": row["f1-score"] for name, row in report.items() if not name.endswith(" avg")}
    return {name: float(value) for name, value in scores.items()}


class Ner(evaluate.Metric):
    """`compute` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=compute.__doc__,
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions, references):
        return compute(predictions, references)
