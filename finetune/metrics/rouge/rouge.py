"""ROUGE F1 of summaries (Lin 2004) by rouge-score with Porter's stemmer, as papers report it."""

from rouge_score.rouge_scorer import RougeScorer

from finetune.metrics import evaluate_module

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def compute(predictions, references) -> dict[str, float]:
    """Score N texts by N references, each a text or a list of texts, of which the best counts; a line is a sentence."""
    scorer = RougeScorer(KINDS, use_stemmer=True)
    best = [
        scorer.score_multi([accepted] if isinstance(accepted, str) else accepted, prediction)
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
    return {kind: sum(found[kind].fmeasure for found in best) / len(best) for kind in KINDS}


Rouge = evaluate_module(compute, "string", "string[]", "string")
