"""Exact match and F1 of answers, as in SQuAD 2's official script (Rajpurkar et al. 2018)."""

import re
import string
from collections import Counter

from finetune.metrics import evaluate_module


def compute(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    """Score N answers, "" for none, by N lists of accepted answers, empty where there is none; the best one counts."""
    exact = f1 = 0.0
    for prediction, accepted in zip(predictions, references, strict=True):
        # as in that script: an answer that normalizes to nothing is ignored
        answers = [answer for answer in accepted if normalize(answer)] or [""]
        exact += max(float(normalize(prediction) == normalize(answer)) for answer in answers)
        f1 += max(token_f1(prediction, answer) for answer in answers)
    return {"f1": f1 / len(predictions), "exact_match": exact / len(predictions)}


def normalize(answer: str) -> str:
    """Return an answer without case, ASCII punctuation, articles and extra spaces."""
    answer = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def token_f1(prediction: str, answer: str) -> float:
    """Return the F1 of two answers' words, counting repetitions."""
    predicted, right = normalize(prediction).split(), normalize(answer).split()
    if not predicted or not right:
        return float(predicted == right)
    return 2 * (Counter(predicted) & Counter(right)).total() / (len(predicted) + len(right))


Squad = evaluate_module(compute, "string", "string[]")
