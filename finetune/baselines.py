"""What a fine-tuned model must beat, on the same splits: majority class, TF-IDF, and its own architecture untrained."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from .checkpoint import Checkpoint
from .examples import Example, Splits
from .report import Row
from .settings import FinetuneSettings
from .train import EncodedSplits, train_seed

TFIDF_CS = (0.25, 1.0, 4.0, 16.0, 64.0)
SCRATCH_RATE_FACTORS = (1.0, 3.0)  # of the fine-tuned model's rate: fresh weights want larger steps

Score = Callable[[np.ndarray, np.ndarray], float]


def majority_class(splits: Splits, score: Score) -> Row:
    """Always the training split's most frequent label."""
    started = time.perf_counter()
    label = Counter(example.label for example in splits.train).most_common(1)[0][0]
    validation, reported = (
        score(_labels(examples), np.full(len(examples), label)) for examples in (splits.validation, splits.reported)
    )
    return Row.single("majority class", validation, reported, seconds=time.perf_counter() - started)


def tfidf(splits: Splits, score: Score) -> Row:
    """Word 1- and 2-grams, sublinear tf, logistic regression, C chosen on validation. No chance in it: one figure."""
    started = time.perf_counter()
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    train = vectorizer.fit_transform(_texts(splits.train))
    validation, reported = (vectorizer.transform(_texts(part)) for part in (splits.validation, splits.reported))
    classifiers = {c: LogisticRegression(C=c, max_iter=1000).fit(train, _labels(splits.train)) for c in TFIDF_CS}
    tried = {c: score(_labels(splits.validation), model.predict(validation)) for c, model in classifiers.items()}
    best = max(tried, key=tried.__getitem__)
    return Row.single(
        f"TF-IDF + logistic regression (C {best:g})",
        tried[best],
        score(_labels(splits.reported), classifiers[best].predict(reported)),
        seconds=time.perf_counter() - started,
        choice=f"words and pairs of words; C by validation: {_listed(tried)}",
    )


def from_scratch(checkpoint: Checkpoint, settings: FinetuneSettings, data: EncodedSplits, score: Score) -> Row:
    """Same architecture, tokenizer, seeds and code path, fresh weights; its learning rate is chosen on validation
    with seed 1 among `SCRATCH_RATE_FACTORS` times the fine-tuned model's."""
    started = time.perf_counter()

    def run(rate: float, seed: int):
        at_rate = dataclasses.replace(settings, learning_rate=rate)
        title = f"from scratch, rate {rate:g}, seed {seed}"
        return train_seed(checkpoint, at_rate, data, score, seed, from_scratch=True, title=title).result

    rates = [min(1.0, settings.learning_rate * factor) for factor in SCRATCH_RATE_FACTORS]
    trials = {rate: run(rate, seed=1) for rate in rates}
    tried = {rate: result.validation for rate, result in trials.items()}
    best = max(tried, key=tried.__getitem__)
    results = [trials[best], *(run(best, seed) for seed in range(2, settings.seeds + 1))]
    return Row.of_seeds(
        f"same architecture, from scratch (rate {best:g})",
        results,
        seconds=time.perf_counter() - started,
        choice=f"same tokenizer, seeds and epochs; learning rate by seed 1's validation: {_listed(tried)}",
    )


def _listed(tried: dict[float, float]) -> str:
    return ", ".join(f"{value:g} gives {100 * score:.2f}" for value, score in tried.items())


def _texts(examples: Sequence[Example]) -> list[str]:
    return [" ".join(example.texts) for example in examples]


def _labels(examples: Sequence[Example]) -> np.ndarray:
    return np.array([example.label for example in examples])
