"""What a fine-tuned model must beat, on the same splits: a constant, TF-IDF, and its own architecture untrained."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from .checkpoint import Checkpoint
from .examples import Example, Splits
from .kinds.base import Kind
from .report import Row
from .resume import Unfinished
from .settings import FinetuneSettings
from .train import EncodedSplits, SeedResult, TrainedSeed, score_reported, train_seed

if TYPE_CHECKING:
    from .kinds.multiple_choice import MultipleChoice
    from .kinds.sequence import SequenceKind

STRENGTHS = (0.25, 1.0, 4.0, 16.0, 64.0)  # the linear model's C: how closely it fits its data
SCRATCH_RATE_FACTORS = (1.0, 3.0)  # of the fine-tuned model's rate: fresh weights want larger steps


def constant(kind: SequenceKind | MultipleChoice, splits: Splits) -> Row:
    """One prediction for every text: the most frequent label, the mean."""
    started = time.perf_counter()
    answer = kind.constant(kind.references(splits.train))

    def score(examples: Sequence[Example]) -> dict[str, float]:
        return kind.score_predictions(np.stack([np.asarray(answer)] * len(examples)), examples)

    reported = {name: score(examples) for name, examples in splits.reported.items()}
    validation = score(splits.validation)[kind.main]
    return Row.single(kind.constant_name, validation, reported, seconds=time.perf_counter() - started)


def tfidf(kind: SequenceKind, splits: Splits) -> Row:
    """Word 1- and 2-grams, sublinear tf, a linear model, its strength chosen on validation. No chance in it: one
    figure. Of two texts it sees what they share, what they do not, and their cosine."""
    started = time.perf_counter()
    vectorizer = _fitted_vectorizer(splits)

    def features(examples: Sequence[Example]) -> scipy.sparse.csr_matrix:
        parts = [vectorizer.transform(column) for column in zip(*(e.texts for e in examples), strict=True)]
        if len(parts) == 1:
            return parts[0]
        shared = parts[0].multiply(parts[1])
        return scipy.sparse.hstack([shared, abs(parts[0] - parts[1]), shared.sum(axis=1)]).tocsr()

    train, validation = features(splits.train), features(splits.validation)
    models = {c: kind.linear(c).fit(train, kind.references(splits.train)) for c in STRENGTHS}
    tried = {
        c: kind.score_predictions(model.predict(validation), splits.validation)[kind.main]
        for c, model in models.items()
    }
    best = max(tried, key=tried.__getitem__)
    return Row.single(
        f"TF-IDF + {kind.linear_name} (C {best:g})",
        tried[best],
        {
            name: kind.score_predictions(models[best].predict(features(examples)), examples)
            for name, examples in splits.reported.items()
        },
        seconds=time.perf_counter() - started,
        choice=f"words and pairs of words; C by validation: {_listed(tried)}",
    )


def most_alike(kind: MultipleChoice, splits: Splits) -> Row:
    """The choice whose TF-IDF has the largest cosine with that of what the choices share: which words matter is
    learned of the training texts, what is right of nothing."""
    started = time.perf_counter()
    vectorizer = _fitted_vectorizer(splits)

    def score(examples: Sequence[Example]) -> dict[str, float]:
        shared = vectorizer.transform(" ".join(example.texts[: kind.shared]) for example in examples)
        columns = zip(*(example.texts[kind.shared :] for example in examples), strict=True)
        alike = [vectorizer.transform(column).multiply(shared).sum(axis=1) for column in columns]
        return kind.score_predictions(np.asarray(np.hstack(alike)).argmax(axis=1), examples)

    reported = {name: score(examples) for name, examples in splits.reported.items()}
    validation = score(splits.validation)[kind.main]
    return Row.single("most alike by TF-IDF", validation, reported, seconds=time.perf_counter() - started)


def from_scratch(
    kind: Kind, checkpoint: Checkpoint, settings: FinetuneSettings, data: EncodedSplits, unfinished: Unfinished
) -> Row:
    """Same architecture, tokenizer, seeds and code path, fresh weights; its learning rate is chosen on validation
    with seed 1 among `SCRATCH_RATE_FACTORS` times the fine-tuned model's. What an interrupted run finished is taken
    from `unfinished`."""
    settings = dataclasses.replace(settings, from_scratch=True, compare=False, lora=None)
    rates = [min(1.0, settings.learning_rate * factor) for factor in SCRATCH_RATE_FACTORS]
    done = (unfinished.load("scratch") or {"facts": {"trials": [], "seeds": []}})["facts"]

    def run(rate: float, seed: int) -> TrainedSeed:
        at_rate = dataclasses.replace(settings, learning_rate=rate)
        title = f"from scratch, rate {rate:g}, seed {seed}"
        return train_seed(kind, checkpoint, at_rate, data, seed, title=title, unfinished=unfinished)

    trained = {}
    for rate in rates[len(done["trials"]) :]:
        trained[rate] = run(rate, seed=1)
        done["trials"].append({"validation": trained[rate].validation, "seconds": trained[rate].seconds})
        unfinished.save("scratch", done)
    tried = {rate: trial["validation"] for rate, trial in zip(rates, done["trials"], strict=True)}
    best = max(tried, key=tried.__getitem__)
    for seed in range(len(done["seeds"]) + 1, settings.seeds + 1):
        first = trained.get(best) if seed == 1 else None
        scored = score_reported(kind, checkpoint, settings, data, first or run(best, seed))
        done["seeds"].append(dataclasses.asdict(scored.result))
        unfinished.save("scratch", done)
    results = [SeedResult(**result) for result in done["seeds"]]
    others = [trial["seconds"] for rate, trial in zip(rates, done["trials"], strict=True) if rate != best]
    return Row.of_seeds(
        f"same architecture, from scratch (rate {best:g})",
        results,
        seconds=sum(result.seconds for result in results) + sum(others),
        choice=f"same tokenizer, seeds and epochs; learning rate by seed 1's validation: {_listed(tried)}",
    )


def _fitted_vectorizer(splits: Splits) -> TfidfVectorizer:
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    return vectorizer.fit(text for example in splits.train for text in example.texts)


def _listed(tried: dict[float, float]) -> str:
    return ", ".join(f"{value:g} gives {100 * score:.2f}" for value, score in tried.items())
