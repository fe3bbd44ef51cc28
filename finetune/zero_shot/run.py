"""One measurement on BLiMP from checks to files, top to bottom."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedConfig

from hf_tiny_transformer.runs import UserError, keep_freed_memory, require_free_output

from ..environment import quieten, require_writable_parent
from ..inference import FinishedModel, open_model
from ..model_files import read_config
from .baselines import fewer_words, require_texts, trigrams
from .blimp import FILES, Paradigm, load_blimp
from .cli import ZeroShotSettings
from .results import collect_results, summary, write_results
from .scoring import Rows, Sentence, encode, likelihood_rows, masked_rows, score_rows

PAIRS_AT_ONCE = 250  # rows are made for so many, and those of equal length run together
_BAR = "{percentage:3.0f}%|{bar}| {n:,}/{total:,} pairs [{elapsed}<{remaining}, {rate_fmt}]"


def run_zero_shot(settings: ZeroShotSettings, command: str) -> dict:
    """Scores all pairs, prints the table, writes `settings.output`; returns what results.json holds.

    Raises:
        UserError: any input is wrong. All of it is checked before the first pair is scored, and nothing is written.
    """
    quieten()
    keep_freed_memory()
    output = require_free_output(settings.output)
    require_writable_parent("--output", output)
    require_texts(settings.ngram or [])
    config = read_config(settings.model, trust_remote_code=settings.trust_remote_code)
    causal = _is_causal(settings.model, config)
    auto_class = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    opened = open_model(
        settings.model,
        config,
        auto_class,
        from_scratch=settings.from_scratch,
        trust_remote_code=settings.trust_remote_code,
    )
    paradigms = load_blimp(settings.data)
    if len(paradigms) != FILES:
        print(
            f"{len(paradigms)} files, but BLiMP has {FILES}: not to be compared with figures of the whole",
            file=sys.stderr,
        )
    sentences = {paradigm.name: _encode(paradigm, opened, causal) for paradigm in paradigms}
    baselines = {"fewer words": fewer_words(paradigms)}
    if settings.ngram:
        baselines["trigrams"] = trigrams(settings.ngram, opened.tokenizer, sentences)
    started = time.perf_counter()
    make_rows = likelihood_rows if causal else _masking(settings, opened)
    scores = _score_all(opened, sentences, make_rows)
    seconds = time.perf_counter() - started
    scored_by = "log-likelihood" if causal else f"pseudo-log-likelihood, {settings.masking}"
    results = collect_results(settings, opened, scored_by, paradigms, scores, baselines, seconds, command)
    write_results(output, results, paradigms, scores)
    print(summary(results))
    return results


def _is_causal(source: str, config: PreTrainedConfig) -> bool:
    """Whether the model is a decoder, scored by likelihood.

    Raises:
        UserError: it is neither a masked nor a causal language model.
    """
    if config.is_encoder_decoder:
        raise UserError(
            f"--model {source}: {config.model_type} reads one text to write another, and gives no likelihood of a "
            "sentence by itself; name an encoder or a decoder"
        )
    if _opens(AutoModelForMaskedLM, config) and not getattr(config, "is_decoder", False):
        return False
    if _opens(AutoModelForCausalLM, config):
        return True
    raise UserError(
        f"--model {source}: config.json's model_type {config.model_type!r} has no language model; "
        "name one that AutoModelForMaskedLM or AutoModelForCausalLM opens"
    )


def _opens(auto_class: type, config: PreTrainedConfig) -> bool:
    """Whether it knows the model, or the model's own code, which was trusted, says so."""
    is_trusted = type(config).__module__.startswith("transformers_modules.")
    return type(config) in auto_class._model_mapping or (is_trusted and auto_class.__name__ in config.auto_map)


def _masking(settings: ZeroShotSettings, opened: FinishedModel) -> Callable[[list[Sentence]], Rows]:
    tokenizer, word_l2r = opened.tokenizer, settings.masking == "word-l2r"
    if tokenizer.mask_token_id is None:
        raise UserError(f"--model {settings.model}: its tokenizer has no mask_token; set it in tokenizer_config.json")
    if word_l2r and not tokenizer.is_fast:
        raise UserError(f"--model {settings.model}: its tokenizer does not tell words apart; use --masking token")
    return lambda sentences: masked_rows(sentences, tokenizer.mask_token_id, word_l2r=word_l2r)


def _encode(paradigm: Paradigm, opened: FinishedModel, causal: bool) -> list[Sentence]:
    """Good and bad sentences by turns."""
    sentences = encode(opened.tokenizer, [text for pair in paradigm.pairs for text in pair], causal=causal)
    for number, sentence in enumerate(sentences):
        if len(sentence.ids) > opened.max_length:
            raise UserError(
                f"{paradigm.origin}, line {number // 2 + 1}: {len(sentence.ids)} tokens, but --model {opened.source} "
                f"takes {opened.max_length}; name a model that takes more"
            )
    return sentences


def _score_all(
    opened: FinishedModel, sentences: dict[str, list[Sentence]], make_rows: Callable[[list[Sentence]], Rows]
) -> dict[str, np.ndarray]:
    """By file: (pairs, 2), the scores of the good and of the bad sentences."""
    scores = {}
    total = sum(len(texts) for texts in sentences.values()) // 2
    with tqdm(total=total, unit=" pairs", bar_format=_BAR, disable=not sys.stderr.isatty(), leave=False) as bar:
        for name, texts in sentences.items():
            parts = []
            for start in range(0, len(texts), 2 * PAIRS_AT_ONCE):
                part = texts[start : start + 2 * PAIRS_AT_ONCE]
                advance = _Share(bar, len(part) // 2)
                parts.append(score_rows(opened.model, make_rows(part), len(part), advance))
            scores[name] = np.concatenate(parts).reshape(-1, 2)
    return scores


class _Share:
    """Moves a bar by shares of `pairs`, in whole ones."""

    def __init__(self, bar: tqdm, pairs: int) -> None:
        self.bar, self.pairs, self.start, self.done = bar, pairs, bar.n, 0.0

    def __call__(self, share: float) -> None:
        self.done += share
        self.bar.update(self.start + round(self.pairs * self.done) - self.bar.n)
