"""Corpus BLEU (Papineni et al. 2002), by sacrebleu with its defaults (Post 2018): tokenizer 13a, exp smoothing."""

import datasets
import evaluate
from sacrebleu import corpus_bleu


def compute(predictions, references) -> dict[str, float]:
    """predictions: N texts; references: N texts, or N lists of texts. sacrebleu's score divided by 100."""
    accepted = [[text] if isinstance(text, str) else list(text) for text in references]
    most = max(len(texts) for texts in accepted)
    streams = [[texts[i] if i < len(texts) else None for texts in accepted] for i in range(most)]
    return {"bleu": corpus_bleu(list(predictions), streams).score / 100}


class Bleu(evaluate.Metric):
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
