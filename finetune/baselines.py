"""What a fine-tuned model must beat, on the same splits: a constant, TF-IDF, and its own architecture untrained."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier

from .data import OUTSIDE, Example, Splits
from .kinds import EncodedSplit, Kind
from .kinds.multiple_choice import MultipleChoice
from .kinds.sequence import MultiLabel, Regression, SequenceKind, SingleLabel
from .kinds.tagging import Tagging
from .report import Row
from .train import SeedResult, Training, train_seed, train_seeds

STRENGTHS = (0.25, 1.0, 4.0, 16.0, 64.0)  # the linear model's C: how closely it fits its data
SCRATCH_RATE_FACTORS = (1.0, 3.0)  # of the fine-tuned model's rate: fresh weights need larger steps
Predict = Callable[[Sequence[Example]], Any]
Method = tuple[str, Predict, str]  # its name, its predictions, and what was chosen on validation

LINEAR: dict[type, tuple[str, Callable[[float], Any]]] = {  # name, and estimator of a strength
    SingleLabel: ("logistic regression", lambda c: LogisticRegression(C=c, max_iter=1000)),
    MultiLabel: ("logistic regression per label", lambda c: OneVsRestClassifier(LINEAR[SingleLabel][1](c))),
    Regression: ("ridge regression", lambda c: Ridge(alpha=1 / c)),
}

CONSTANTS: dict[type, tuple[str, Callable[[Any], Any]]] = {  # name, and the prediction made from all training labels
    SingleLabel: ("majority class", mode),
    MultipleChoice: ("most frequent place", mode),
    MultiLabel: ("labels of more than half the rows", lambda labels: (labels.mean(axis=0) > 0.5).astype(int)),
    Regression: ("mean", lambda labels: float(np.mean(labels))),
}


def quick_baselines(kind: Kind, splits: Splits) -> list[Row]:
    """Return the rows of the kind's simpler methods."""
    rows = []
    for method in _of_kind(BASELINES, kind) or ():
        started = time.perf_counter()
        name, predict, choice = method(kind, splits)
        parts = {"validation": splits.validation, **splits.reported}
        scores = {split: kind.score_predictions(predict(examples), examples) for split, examples in parts.items()}
        validation, seconds = scores.pop("validation")[kind.main], time.perf_counter() - started
        rows.append(Row.of(name, [SeedResult(0, 0, validation, seconds, [], scores)], kind.main, seconds, choice))
    return rows


def _of_kind(table: Mapping[type, Any], kind: Kind) -> Any:
    return next((value for of_kind, value in table.items() if isinstance(kind, of_kind)), None)


def constant(kind: SequenceKind | MultipleChoice, splits: Splits) -> Method:
    """Predict the same for every text: the most frequent label, the mean."""
    name, choose = _of_kind(CONSTANTS, kind)
    answer = np.asarray(choose(kind.references(splits.train)))
    return name, lambda examples: np.stack([answer] * len(examples)), ""


def tfidf(kind: SequenceKind, splits: Splits) -> Method:
    """Fit a linear model on TF-IDF of word 1- and 2-grams (sublinear tf), its strength chosen on validation."""
    vectorizer = _fitted_vectorizer(splits)

    def features(examples: Sequence[Example]) -> scipy.sparse.csr_matrix:
        parts = [vectorizer.transform(column) for column in zip(*(e.texts for e in examples), strict=True)]
        if len(parts) == 1:
            return parts[0]
        shared = parts[0].multiply(parts[1])  # and what is not shared, and the cosine
        return scipy.sparse.hstack([shared, abs(parts[0] - parts[1]), shared.sum(axis=1)]).tocsr()

    train, validation = features(splits.train), features(splits.validation)
    name, estimator = _of_kind(LINEAR, kind)
    models = {c: estimator(c).fit(train, kind.references(splits.train)) for c in STRENGTHS}
    found = {c: kind.score_predictions(model.predict(validation), splits.validation) for c, model in models.items()}
    tried = {c: scores[kind.main] for c, scores in found.items()}
    best = max(tried, key=tried.__getitem__)
    choice = f"words and pairs of words; C by validation: {_listed(tried)}"
    return f"TF-IDF + {name} (C {best:g})", lambda rows: models[best].predict(features(rows)), choice


def most_alike(kind: MultipleChoice, splits: Splits) -> Method:
    """Predict the choice whose TF-IDF has the largest cosine with that of the texts that the choices share."""
    vectorizer = _fitted_vectorizer(splits)

    def predict(examples: Sequence[Example]) -> np.ndarray:
        shared = vectorizer.transform(" ".join(example.texts[: kind.shared]) for example in examples)
        columns = zip(*(example.texts[kind.shared :] for example in examples), strict=True)
        alike = [vectorizer.transform(column).multiply(shared).sum(axis=1) for column in columns]
        return np.asarray(np.hstack(alike)).argmax(axis=1)

    return "most alike by TF-IDF", predict, ""


def most_frequent_tag(kind: Kind, splits: Splits) -> Method:
    """Predict each word's most frequent tag in the training split."""
    seen: defaultdict[str, list[str]] = defaultdict(list)
    for example in splits.train:
        for word, tag in zip(example.texts[0].split(" "), example.label, strict=True):
            seen[word].append(tag)
    tags = {word: mode(tags) for word, tags in seen.items()}

    def predict(examples: Sequence[Example]) -> list[list[str]]:
        return [[tags.get(word, OUTSIDE) for word in example.texts[0].split(" ")] for example in examples]

    return "most frequent tag per word", predict, ""


BASELINES: dict[type, tuple[Callable[[Any, Splits], Method], ...]] = {
    SequenceKind: (constant, tfidf),
    MultipleChoice: (constant, most_alike),
    Tagging: (most_frequent_tag,),
}


def from_scratch(training: Training, directory: Path, reported: dict[str, EncodedSplit]) -> Row:
    """Train the same architecture from fresh weights, with the same tokenizer and seeds.

    Its learning rate is chosen with seed 1 on validation, among `SCRATCH_RATE_FACTORS` times the fine-tuned model's.
    """
    fresh = training.using(from_scratch=True, compare=False, lora=None)
    validations, seconds = {}, {}
    for rate in (min(1.0, training.settings.learning_rate * factor) for factor in SCRATCH_RATE_FACTORS):
        title, folder = f"from scratch, rate {rate:g}, seed 1", directory / f"rate-{rate:g}" / "1"
        first = train_seed(fresh.using(learning_rate=rate), folder, 1, title)
        validations[rate], seconds[rate] = first.validation, first.seconds
    best = max(validations, key=validations.__getitem__)
    title, folder = f"from scratch, rate {best:g}, ", directory / f"rate-{best:g}"
    results = train_seeds(fresh.using(learning_rate=best), folder, reported, title)
    seconds[best] = sum(result.seconds for result in results)
    choice = f"same tokenizer, seeds and epochs; learning rate by seed 1's validation: {_listed(validations)}"
    name = f"same architecture, from scratch (rate {best:g})"
    return Row.of(name, results, training.kind.main, sum(seconds.values()), choice)


def _fitted_vectorizer(splits: Splits) -> TfidfVectorizer:
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    return vectorizer.fit(text for example in splits.train for text in example.texts)


def _listed(tried: dict[float, float]) -> str:
    return ", ".join(f"{value:g} gives {100 * score:.2f}" for value, score in tried.items())
