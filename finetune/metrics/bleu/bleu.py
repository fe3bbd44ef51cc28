"""Corpus BLEU (Papineni et al. 2002) by sacrebleu with its defaults (Post 2018): tokenizer 13a, exp smoothing."""

from sacrebleu import corpus_bleu

from finetune.metrics import evaluate_module


def compute(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Score N texts by N references; sacrebleu's score divided by 100."""
    return {"bleu": corpus_bleu(list(predictions), [list(references)]).score / 100}


Bleu = evaluate_module(compute, "string")
