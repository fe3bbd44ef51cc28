"""Exact match and F1 of answers, as SQuAD 2's official script has them (Rajpurkar et al. 2018). For version 1.1 the
figures are the same, unless an answer consists of articles and punctuation only."""

import re
import string
from collections import Counter

import datasets
import evaluate


def compute(predictions, references) -> dict[str, float]:
    """predictions: N answers, "" for "the text does not say"; references: N lists of accepted answers, an empty list
    where there is none (SQuAD 2). Each prediction counts by the reference that fits it best."""
    exact = f1 = 0.0
    for prediction, accepted in zip(predictions, references, strict=True):
        # As in that script: what normalises to nothing is no answer to compare with.
        answers = [answer for answer in accepted if normalize(answer)] or [""]
        exact += max(float(normalize(prediction) == normalize(answer)) for answer in answers)
        f1 += max(token_f1(prediction, answer) for answer in answers)
    return {"f1": f1 / len(predictions), "exact_match": exact / len(predictions)}


def normalize(answer: str) -> str:
    """Without case, ASCII punctuation, articles and surplus spaces."""
    answer = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def token_f1(prediction: str, answer: str) -> float:
    """F1 of the two answers' words, each as often as it occurs."""
    predicted, right = normalize(prediction).split(), normalize(answer).split()
    if not predicted or not right:
        return float(predicted == right)
    return 2 * (Counter(predicted) & Counter(right)).total() / (len(predicted) + len(right))


class Squad(evaluate.Metric):
    """`compute` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        answer = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=compute.__doc__,
            features=datasets.Features({"predictions": answer, "references": datasets.Sequence(answer)}),
        )

    def _compute(self, predictions, references):
        return compute(predictions, references)
