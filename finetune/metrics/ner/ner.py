"""Precision, recall and F1 of whole entities by seqeval, which counts like CoNLL's script conlleval."""

from seqeval.metrics import accuracy_score, classification_report

from finetune.metrics import evaluate_module


def compute(predictions: list[list[str]], references: list[list[str]]) -> dict[str, float]:
    """Score N lists of tags, one per word: O, B-PER, I-PER, ... in IOB1 or IOB2.

    An entity is correct if its type and both ends are. `accuracy` is that of tags; `f1_PER` and so on are per type.
    """
    report = classification_report(list(references), list(predictions), output_dict=True, zero_division=0)
    overall = report["micro avg"]
    scores = {"f1": overall["f1-score"], "precision": overall["precision"], "recall": overall["recall"]}
    scores["accuracy"] = accuracy_score(list(references), list(predictions))
    scores |= {f"f1_{name}": row["f1-score"] for name, row in report.items() if not name.endswith(" avg")}
    return {name: float(value) for name, value in scores.items()}


Ner = evaluate_module(compute, "string[]")
