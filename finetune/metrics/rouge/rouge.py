"""ROUGE F1 of summaries (Lin 2004), by rouge-score, with Porter's stemmer, as papers report it."""

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def compute(predictions, references) -> dict[str, float]:
    """predictions: N texts; references: N texts, or N lists of texts, of which the best one counts, for each kind by
    itself. For rougeLsum a line is a sentence."""
    scorer = RougeScorer(KINDS, use_stemmer=True)
    totals = dict.fromkeys(KINDS, 0.0)
    for prediction, accepted in zip(predictions, references, strict=True):
        best = scorer.score_multi([accepted] if isinstance(accepted, str) else accepted, prediction)
        for kind in KINDS:
            totals[kind] += best[kind].fmeasure
    return {kind: total / len(predictions) for kind, total in totals.items()}


class Rouge(evaluate.Metric):
    """`compute` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=compute.__doc__,
            features=[
                datasets.Features({"predictions": text, "references": references})
                for references in (datasets.Sequence(text), text)
            ],
        )

    def _compute(self, predictions, references):
        return compute(predictions, references)
