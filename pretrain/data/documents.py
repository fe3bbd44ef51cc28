"""Sources to documents: each is hashed, exact duplicates are dropped, and some are held out for validation.

Every portion of the corpus is hashed into a file of a few bytes per document, and the hashes are compared in parts, so
that memory does not grow with the corpus. Whether a document is held out depends on its text alone: adding a file moves
no document from one split to the other. Results are cached until a source changes.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import (
    atomic_directory,
    atomic_write_json,
    cache_entry,
    is_intact,
    only_process,
)

from .sources import Portion, Source, Tally, divide, open_sources
from .team import Team

FORMAT = 4  # of the cached hashes and splits
TRAIN, VALIDATION, DUPLICATE = 0, 1, 2  # the fate of a document
HASH = np.dtype([("key", "<u8"), ("length", "<u4")])  # of a document: hash of its text, and its characters
CHUNK = 2**16  # documents whose hashes are read at once
PART = 2**20  # documents whose hashes are compared at once
FACTS_FILE, FATES_FILE, HASHES_FILE = "facts.json", "fates.bin", "hashes.bin"


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read as often as needed, in the same order each time, without holding them in memory.

    `facts` are documents, characters, duplicates and a `fingerprint` of text, order and split, which does not depend on
    how the text is cut into files. `counts` are the documents of each portion with duplicates; `fates_file` has the
    fate of each, one byte each.
    """

    portions: list[Portion]
    facts: dict[str, Any]
    counts: list[int]
    tally: Tally
    fates_file: Path

    def fates(self, portion: int) -> np.ndarray:
        """Return the fates of a portion's documents, (D,) memory-mapped."""
        start = sum(self.counts[:portion])
        return np.memmap(self.fates_file, dtype=np.uint8, mode="r")[start : start + self.counts[portion]]

    def train(self) -> Iterator[str]:
        """Iterate over the documents of the training split."""
        return self.split(TRAIN)

    def split(self, wanted: int) -> Iterator[str]:
        """Iterate over the documents of TRAIN or VALIDATION."""
        for number, portion in enumerate(self.portions):
            texts = documents_of(portion)
            yield from (text for text, fate in zip(texts, self.fates(number), strict=True) if fate == wanted)


def documents_of(sources: list[Source], tally: Tally | None = None) -> Iterator[str]:
    """Iterate over all documents in order, stripped, without empty ones; facts are added to `tally`."""
    for source in sources:
        for text in source.read(Counter() if tally is None else tally):
            if text := text.strip():
                yield text


def open_corpus(
    names: list[str], *, text_field: str, validation_share: float, exclude: Path | None = None, team: Team | None = None
) -> Corpus:
    """Read everything once, unless these sources were read before, and decide the fate of each document.

    Raises:
        UserError: A source does not exist or cannot be read, or there are too few documents.
    """
    team = team or Team()

    def sources() -> list[Source]:
        return open_sources(names, text_field=text_field, exclude=exclude)

    if team.world > 1:
        team.main_only(lambda: bool(sources()))  # a data set of the Hub is downloaded once
    portions = divide(team.together(sources))
    hashed = [cache_entry("hashes", [FORMAT, *(source.identity for source in portion)]) for portion in portions]
    directory = cache_entry("surveys", [FORMAT, [entry.name for entry in hashed], validation_share])

    def hash_share() -> None:
        for number in team.share(range(len(portions))):
            with only_process(hashed[number]):
                if not is_intact(hashed[number]):
                    _hash_documents(portions[number], hashed[number], team, f"reading {number + 1}/{len(portions)}")

    def split() -> None:
        with only_process(directory):
            if not is_intact(directory):
                _split(hashed, validation_share, directory)

    if not team.main_only(lambda: is_intact(directory)):
        team.together(hash_share)
        team.main_only(split)
    found = json.loads((directory / FACTS_FILE).read_text(encoding="utf-8"))
    return Corpus(portions, **found, fates_file=directory / FATES_FILE)


def _hash_documents(portion: Portion, directory: Path, team: Team, title: str) -> None:
    """Write the HASH of each document, and a tally of the sources."""
    tally: Tally = Counter()
    with atomic_directory(directory) as staging:
        with (staging / HASHES_FILE).open("wb") as stream:
            for text in team.progress(documents_of(portion, tally), title):
                key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
                stream.write(struct.pack("<QI", key, len(text)))  # a HASH
        atomic_write_json(staging / FACTS_FILE, tally)


def _split(hashed: list[Path], validation_share: float, directory: Path) -> None:
    """Decide the fate of every document, and write `directory`."""
    tally: Tally = Counter()
    counts, digest = [], hashlib.sha256(repr(validation_share).encode())
    limit = np.uint64(min(int(validation_share * 2**64), 2**64 - 1))
    found, characters = np.zeros(3, dtype=np.int64), 0
    with atomic_directory(directory) as staging:
        with (staging / HASHES_FILE).open("wb") as joined:
            for entry in hashed:
                tally.update(json.loads((entry / FACTS_FILE).read_text(encoding="utf-8")))
                counts.append((entry / HASHES_FILE).stat().st_size // HASH.itemsize)
                with (entry / HASHES_FILE).open("rb") as stream:
                    while len(part := np.fromfile(stream, dtype=HASH, count=CHUNK)):
                        digest.update(part["key"].tobytes())
                        part.tofile(joined)
        if sum(counts) == 0:
            raise UserError("--corpus: has no text; name other sources")
        hashes = np.memmap(staging / HASHES_FILE, dtype=HASH, mode="r")
        fates = np.memmap(staging / FATES_FILE, dtype=np.uint8, mode="w+", shape=hashes.shape)
        _mark_duplicates(hashes, fates)
        for chunk in _slices(len(hashes), CHUNK):
            split = np.where(hashes[chunk]["key"] < limit, VALIDATION, TRAIN)
            fates[chunk] = np.where(fates[chunk] == DUPLICATE, DUPLICATE, split)
            found += np.bincount(fates[chunk], minlength=3)
            characters += int(hashes[chunk]["length"][fates[chunk] != DUPLICATE].sum(dtype=np.int64))
        fates.flush()
        (staging / HASHES_FILE).unlink()
        train, held_out, duplicates = map(int, found)
        if 0 in (train, held_out):
            raise UserError(
                f"--corpus: {train + held_out} documents are too few to hold some out for validation; give more text "
                "or a larger --validation-share. In .txt files a document is a line, or ends at a blank line where "
                "these are frequent"
            )
        facts = {"documents": train + held_out, "characters": characters, "duplicates": duplicates}
        named = facts | {"fingerprint": digest.hexdigest()}
        atomic_write_json(staging / FACTS_FILE, {"facts": named, "counts": counts, "tally": tally})


def _mark_duplicates(hashes: np.ndarray, fates: np.ndarray) -> None:
    """Mark all but the first of equal keys, comparing about PART of them at a time: those with the same remainder."""
    parts = np.uint64(len(hashes) // PART + 1)
    for remainder in range(int(parts)):
        same = [np.flatnonzero(hashes[p]["key"] % parts == remainder) + p.start for p in _slices(len(hashes), PART)]
        places = np.concatenate(same)
        _, first = np.unique(hashes["key"][places], return_index=True)
        repeated = np.ones(len(places), dtype=bool)
        repeated[first] = False
        fates[places[repeated]] = DUPLICATE


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]
