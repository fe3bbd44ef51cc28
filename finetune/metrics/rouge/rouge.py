"""ROUGE F1 of summaries (Lin 2004) by rouge-score with Porter's stemmer, as papers report it."""

from rouge_score.rouge_scorer import RougeScorer

from finetune.metrics import evaluate_module

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def compute(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Score N texts by N references; for rougeLsum, a line is a sentence."""
    scorer = RougeScorer(KINDS, use_stemmer=True)
    found = [scorer.score(reference, text) for text, reference in zip(predictions, references, strict=True)]
    return {kind: sum(scores[kind].fmeasure for scores in found) / len(found) for kind in KINDS}


Rouge = evaluate_module(compute, "string")
