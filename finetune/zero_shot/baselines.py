"""What a language model must beat on minimal pairs: the shorter sentence, and counts of neighbouring tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from hf_tiny_transformer.common.sample import load_sample
from hf_tiny_transformer.runs import UserError

from .blimp import Paradigm
from .scoring import Sentence

SAMPLE = "sample"
ORDER = 3  # trigrams
BACK_OFF = 0.4  # as published
LINES_AT_ONCE = 4096

Scores = dict[str, np.ndarray]  # by file: (pairs, 2), the scores of the good and of the bad sentences


def fewer_words(paradigms: Sequence[Paradigm]) -> Scores:
    """The sentence with fewer words wins; many pairs tie."""
    return {
        paradigm.name: -np.array([[len(text.split()) for text in pair] for pair in paradigm.pairs], dtype=np.float64)
        for paradigm in paradigms
    }


def require_texts(names: Sequence[str]) -> None:
    """Raises:
    UserError: one of the files that n-grams are to be counted in is not there.
    """
    for name in names:
        if name != SAMPLE and not Path(name).is_file():
            raise UserError(f"--ngram {name}: no such file; name text files, or `{SAMPLE}`")


def trigrams(names: Sequence[str], tokenizer: PreTrainedTokenizerBase, sentences: dict[str, list[Sentence]]) -> Scores:
    """Log-probabilities by trigram counts with stupid backoff (Brants et al. 2007, equation 5), on the model's tokens.

    Only n-grams that the sentences hold are counted, so that memory does not grow with the text.

    Args:
        names: text files, read line by line, or `sample`.
        sentences: by file, good and bad ones by turns.

    Raises:
        UserError: a text can't be read.
    """
    flat = [sentence for of_file in sentences.values() for sentence in of_file]
    base = len(tokenizer) + 1  # the last number parts texts
    texts = [np.array([sentence.ids[position] for position in sentence.scored], dtype=np.int64) for sentence in flat]
    asked = [_ngrams(_joined(texts, base), order, base) for order in range(1, ORDER + 1)]
    known = [np.unique(keys) for keys in asked]
    counts, total = _count(names, tokenizer, known, base)
    scores = np.array([_score(text, known, counts, total, base) for text in texts])
    ends = np.cumsum([len(of_file) for of_file in sentences.values()])[:-1]
    return {name: part.reshape(-1, 2) for name, part in zip(sentences, np.split(scores, ends), strict=True)}


def _joined(texts: Sequence[np.ndarray], base: int) -> np.ndarray:
    """One after the other, each with a mark behind it."""
    return np.concatenate([part for text in texts for part in (text, [base - 1])]).astype(np.int64)


def _ngrams(ids: np.ndarray, order: int, base: int) -> np.ndarray:
    """A number for each n-gram of `ids`, in the order of their beginnings: its tokens as digits to `base`."""
    keys = np.zeros(max(0, len(ids) - order + 1), dtype=np.int64)
    for offset in range(order):
        keys = keys * base + ids[offset : offset + len(keys)]
    return keys


def _count(
    names: Sequence[str], tokenizer: PreTrainedTokenizerBase, known: list[np.ndarray], base: int
) -> tuple[list[np.ndarray], int]:
    """How often each known n-gram stands in the texts, by order, and how many tokens these have."""
    counts, total = [np.zeros(len(keys), dtype=np.int64) for keys in known], 0
    lines_left = _lines(names)
    batches = iter(lambda: list(islice(lines_left, LINES_AT_ONCE)), [])
    for lines in tqdm(batches, desc="counting", unit=f" x {LINES_AT_ONCE} lines", disable=None, leave=False):
        encoded = tokenizer(lines, add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids = _joined([np.array(text, dtype=np.int64) for text in encoded["input_ids"]], base)
        total += len(ids) - len(lines)
        for order, keys in enumerate(known, start=1):
            found = _ngrams(ids, order, base)
            places = np.searchsorted(keys, found).clip(max=len(keys) - 1)
            counts[order - 1] += np.bincount(places[keys[places] == found], minlength=len(keys))
    if total == 0:
        raise UserError(f"--ngram {names[0]}: holds no text; name files with text in them")
    return counts, total


def _score(text: np.ndarray, known: list[np.ndarray], counts: list[np.ndarray], total: int, base: int) -> float:
    """Of each token the longest n-gram that was ever seen decides; each step to a shorter one costs BACK_OFF."""
    of_order = [
        counted[np.searchsorted(keys, _ngrams(text, order, base))]
        for order, (keys, counted) in enumerate(zip(known, counts, strict=True), start=1)
    ]
    shares = (of_order[0] + 1) / (total + base)  # a token never seen has a share, too
    for order in range(2, ORDER + 1):
        seen, context = of_order[order - 1], of_order[order - 2]
        ahead = order - 1  # tokens that have no n-gram of this order: those at the beginning
        shorter = BACK_OFF * shares[ahead:]
        longer = np.divide(seen, context[: len(seen)], out=shorter, where=seen > 0)
        shares = np.concatenate([shares[:ahead], longer])
    return float(np.log(shares).sum())


def _lines(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name == SAMPLE:
            yield from load_sample().documents
            continue
        try:
            with open(name, encoding="utf-8") as stream:
                yield from filter(None, map(str.strip, stream))
        except UnicodeDecodeError:
            raise UserError(f"--ngram {name}: not UTF-8; convert the file to UTF-8") from None
        except OSError as error:
            raise UserError(f"--ngram {name}: can't be read ({error.strerror}); check its permissions") from None
