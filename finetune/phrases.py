"""Validation for a training set of phrases: whole sentences, no part of which is trained on."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from .examples import HELD_OUT_SEED, Example

HELD_OUT_SHARE = 0.1  # of the sentences


def hold_out_sentences(train: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """(training rows, validation rows), for rows of one text each that are sentences and phrases of these.

    Stanford's treebank (Socher et al. 2013) labels every phrase of a sentence's parse tree, and GLUE's SST-2 trains on
    all of them, while its dev and test sets are whole sentences. A part of the rows drawn at random would hold phrases
    whose sentence is trained on, and say that all is well. So a seeded tenth of the sentences is the validation, and
    training leaves out what stands in these sentences alone. A sentence is a row that is part of no other row.
    """
    owners = _owners([example.texts[0] for example in train])
    sentences = sorted({owner for of_row in owners for owner in of_row})
    random.Random(HELD_OUT_SEED).shuffle(sentences)
    held_out = set(sentences[: max(1, round(HELD_OUT_SHARE * len(sentences)))])
    return (
        [example for example, of_row in zip(train, owners, strict=True) if not held_out.issuperset(of_row)],
        [train[row] for row in sorted(held_out)],
    )


def _owners(texts: Sequence[str]) -> list[list[int]]:
    """Of each row, the sentences that it is part of, each by its row; of a sentence, itself."""
    rows = defaultdict(list)
    for row, text in enumerate(texts):
        rows[" ".join(text.split())].append(row)
    owners: list[list[int]] = [[] for _ in texts]
    for text in sorted(rows, key=lambda text: -len(text.split())):  # the longest first: what is part comes after
        sentence = rows[text][0]
        if owners[sentence]:
            continue
        for part in set(_spans(text.split())) & rows.keys():
            for row in rows[part]:
                owners[row].append(sentence)
    return owners


def _spans(words: list[str]) -> Iterator[str]:
    for start in range(len(words)):
        for end in range(start + 1, len(words) + 1):
            yield " ".join(words[start:end])
