"""One reading of a corpus: what is in it, which documents are duplicates, which are held out.

What is found is kept on disk, a byte a document, so that memory does not grow with the corpus. It holds while the
sources stay as they are, so that a second run or a resume begins at once.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hf_tiny_transformer.runs import UserError, atomic_directory, atomic_write_json, cache_entry

from .readers import Source

FORMAT = 1
TRAIN, VALIDATION, DUPLICATE = 0, 1, 2  # a document's fate
CHUNK = 2**16  # documents that are held in memory at once
PART = 2**20  # documents whose hashes are compared at once


@dataclass(frozen=True)
class SurveyFacts:
    """`documents` and `characters` count without duplicates; `fingerprint` identifies text, order and split."""

    documents: int
    characters: int
    duplicates: int
    fingerprint: str


@dataclass(frozen=True)
class Survey:
    """`fates` is a file with a byte for each document: TRAIN, VALIDATION or DUPLICATE."""

    facts: SurveyFacts
    fates: Path


def documents_of(sources: list[Source]) -> Iterator[str]:
    """All documents in order, stripped, the empty ones left out."""
    for source in sources:
        for text in source.read():
            if text := text.strip():
                yield text


def survey_sources(sources: list[Source], validation_share: float) -> Survey:
    """Raises:
    UserError: a source can't be read, or there is nothing to split.
    """
    identities = [source.identity for source in sources]
    directory = cache_entry("surveys", [FORMAT, identities, validation_share])
    if not directory.is_dir():
        with atomic_directory(directory) as staging:
            atomic_write_json(staging / "facts.json", asdict(_survey(sources, validation_share, staging)))
    facts = SurveyFacts(**json.loads((directory / "facts.json").read_text(encoding="utf-8")))
    return Survey(facts, directory / "fates.bin")


def _survey(sources: list[Source], validation_share: float, directory: Path) -> SurveyFacts:
    fingerprint = _hash_documents(sources, validation_share, directory)
    count = (directory / "keys.bin").stat().st_size // 8
    if count == 0:
        raise UserError("--corpus: holds no text")
    keys = np.memmap(directory / "keys.bin", dtype=np.uint64, mode="r")
    lengths = np.memmap(directory / "lengths.bin", dtype=np.uint32, mode="r")
    fates = np.memmap(directory / "fates.bin", dtype=np.uint8, mode="w+", shape=(count,))
    _mark_duplicates(keys, fates)
    limit = np.uint64(min(int(validation_share * 2**64), 2**64 - 1))
    counts, characters = np.zeros(3, dtype=np.int64), 0
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        fates[part] = np.where(fates[part] == DUPLICATE, DUPLICATE, np.where(keys[part] < limit, VALIDATION, TRAIN))
        counts += np.bincount(fates[part], minlength=3)
        characters += int(lengths[part][fates[part] != DUPLICATE].sum(dtype=np.int64))
    fates.flush()
    for name in ("keys.bin", "lengths.bin"):
        (directory / name).unlink()
    documents = int(counts[TRAIN] + counts[VALIDATION])
    if 0 in (counts[TRAIN], counts[VALIDATION]):
        raise UserError(
            f"--corpus: {documents} documents are too few to hold some out for validation; give more "
            "text (in .txt files an empty line ends a document) or a larger --validation_share"
        )
    return SurveyFacts(documents, characters, int(counts[DUPLICATE]), fingerprint)


def _hash_documents(sources: list[Source], validation_share: float, directory: Path) -> str:
    """Writes keys.bin (eight bytes a document, decided by its text) and lengths.bin; returns the fingerprint."""
    digest = hashlib.sha256(repr(validation_share).encode())
    documents = tqdm(documents_of(sources), unit=" documents", disable=not sys.stderr.isatty(), leave=False)
    with (directory / "keys.bin").open("wb") as keys, (directory / "lengths.bin").open("wb") as lengths:
        for chunk in _chunks(documents):
            hashes = bytearray()
            for text in chunk:
                encoded = text.encode()
                digest.update(encoded + b"\0")
                hashes += hashlib.blake2b(encoded, digest_size=8).digest()
            keys.write(np.frombuffer(bytes(hashes), dtype=">u8").astype(np.uint64).tobytes())
            lengths.write(np.array([len(text) for text in chunk], dtype=np.uint32).tobytes())
    return digest.hexdigest()


def _mark_duplicates(keys: np.ndarray, fates: np.ndarray) -> None:
    """Marks all but the first of equal keys, comparing about PART of them at a time: those with the same remainder."""
    parts = np.uint64(len(keys) // PART + 1)
    for remainder in range(int(parts)):
        places = [
            np.flatnonzero(keys[start : start + PART] % parts == remainder) + start
            for start in range(0, len(keys), PART)
        ]
        places = np.concatenate(places)
        _, first = np.unique(keys[places], return_index=True)
        repeated = np.ones(len(places), dtype=bool)
        repeated[first] = False
        fates[places[repeated]] = DUPLICATE


def _chunks(documents: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in documents:
        chunk.append(text)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
