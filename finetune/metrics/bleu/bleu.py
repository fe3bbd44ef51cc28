"""Corpus BLEU (Papineni et al. 2002) by sacrebleu with its defaults (Post 2018): tokenizer 13a, exp smoothing."""

from itertools import zip_longest

from sacrebleu import corpus_bleu

from finetune.metrics import evaluate_module


def compute(predictions, references) -> dict[str, float]:
    """Score N texts by N references, each a text or a list of texts; sacrebleu's score divided by 100."""
    accepted = [[text] if isinstance(text, str) else text for text in references]
    streams = [*zip_longest(*accepted)]  # the first reference of each text, the second, ...
    return {"bleu": corpus_bleu(list(predictions), streams).score / 100}


Bleu = evaluate_module(compute, "string", "string[]", "string")
