"""What a finished model does with a few examples, as a user would get it: through the Auto classes and pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from .tokenizer import MASK, SPANS

TOP_K = 5
NEW_TOKENS = 30


def demonstrate(directory: Path, family: str, examples: list[str]) -> list[str]:
    """One line for each example: what the model at `directory` makes of it. The likeliest each time, no sampling."""
    if not examples:
        return []
    show = {"decoder": continue_texts, "seq2seq": fill_spans}.get(family, fill_masks)
    with _quiet():
        return show(directory, AutoTokenizer.from_pretrained(directory, trust_remote_code=False), examples)


def fill_masks(directory: Path, tokenizer: PreTrainedTokenizerFast, examples: list[str]) -> list[str]:
    """The most likely words for each [MASK], with their probabilities."""
    model = AutoModelForMaskedLM.from_pretrained(directory, trust_remote_code=False)
    fill_mask = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    lines = []
    for text in examples:
        guesses = fill_mask(text, top_k=TOP_K)
        lines.append(f"{text}  ->  " + ", ".join(f"{g['token_str'].strip()} {g['score']:.2f}" for g in guesses))
    return lines


def continue_texts(directory: Path, tokenizer: PreTrainedTokenizerFast, examples: list[str]) -> list[str]:
    """How each beginning goes on."""
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    lines = []
    for text in examples:
        (continued,) = write(text, max_new_tokens=NEW_TOKENS, do_sample=False, return_full_text=False)
        lines.append(f"{text}  ->  {continued['generated_text'].strip()}")
    return lines


@torch.no_grad()
def fill_spans(directory: Path, tokenizer: PreTrainedTokenizerFast, examples: list[str]) -> list[str]:
    """What stood in place of each [MASK], a span of any length."""
    model = AutoModelForSeq2SeqLM.from_pretrained(directory, trust_remote_code=False).eval()
    lines = []
    for text in examples:
        parts = text.split(MASK)
        corrupted = parts[0] + "".join(span + part for span, part in zip(SPANS, parts[1:], strict=False))
        inputs = tokenizer(corrupted, return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        kept = [i for i in written.tolist() if i not in (tokenizer.bos_token_id, tokenizer.eos_token_id)]
        lines.append(f"{corrupted}  ->  {tokenizer.decode(kept)}")
    return lines


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
