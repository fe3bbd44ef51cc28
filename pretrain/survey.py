"""One reading of a corpus: what is in it, which documents are duplicates, which are held out.

Each portion's documents are hashed by one of the processes, into a file of a few bytes a document; the main process
compares them all. What is found is kept on disk, so that memory does not grow with the corpus. It holds while the
sources stay as they are, so that a second run or a resume begins at once, and after one file more only that is hashed.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from hf_tiny_transformer.runs import UserError, atomic_directory, atomic_file, atomic_write_json, cache_entry

from .crew import Crew
from .readers import Portion, Source

FORMAT = 2
TRAIN, VALIDATION, DUPLICATE = 0, 1, 2  # a document's fate
HASH = np.dtype([("key", "<u8"), ("length", "<u4")])  # of a document: decided by its text; its characters
CHUNK = 2**16  # documents whose hashes are read at once
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
    """`fates` is a file with a byte for each document: TRAIN, VALIDATION or DUPLICATE; `portions` counts documents."""

    facts: SurveyFacts
    portions: list[int]
    fates: Path


def documents_of(sources: list[Source]) -> Iterator[str]:
    """All documents in order, stripped, the empty ones left out."""
    for source in sources:
        for text in source.read():
            if text := text.strip():
                yield text


def survey_portions(portions: list[Portion], validation_share: float, crew: Crew) -> Survey:
    """Raises:
    UserError: a source can't be read, or there is nothing to split.
    """
    hashes = [cache_entry("hashes", [FORMAT, *(source.identity for source in portion)]) for portion in portions]
    directory = cache_entry("surveys", [FORMAT, [file.name for file in hashes], validation_share])

    def hash_share() -> None:
        for number in crew.share(range(len(portions))):
            if not hashes[number].is_file():
                _hash_documents(portions[number], hashes[number], show_progress=crew.is_main and sys.stderr.isatty())

    def merge() -> None:
        with atomic_directory(directory) as staging:
            atomic_write_json(staging / "facts.json", asdict(_survey(hashes, validation_share, staging)))

    if not crew.main_only(directory.is_dir):
        crew.together(hash_share)
        crew.main_only(merge)
    facts = SurveyFacts(**json.loads((directory / "facts.json").read_text(encoding="utf-8")))
    counts = json.loads((directory / "portions.json").read_text(encoding="utf-8"))
    return Survey(facts, counts, directory / "fates.bin")


def _hash_documents(portion: Portion, path: Path, *, show_progress: bool) -> None:
    """Writes HASH of each document. None stays in memory."""
    with atomic_file(path) as stream:
        for text in tqdm(documents_of(portion), unit=" documents", disable=not show_progress, leave=False):
            key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
            stream.write(struct.pack("<QI", key, len(text)))  # a HASH


def _survey(hashes: list[Path], validation_share: float, directory: Path) -> SurveyFacts:
    """Decides every document's fate, and writes fates.bin and portions.json."""
    counts = [file.stat().st_size // HASH.itemsize for file in hashes]
    if sum(counts) == 0:
        raise UserError("--corpus: holds no text")
    fingerprint = _join_hashes(hashes, validation_share, directory)
    keys = np.memmap(directory / "keys.bin", dtype=np.uint64, mode="r")
    lengths = np.memmap(directory / "lengths.bin", dtype=np.uint32, mode="r")
    fates = np.memmap(directory / "fates.bin", dtype=np.uint8, mode="w+", shape=keys.shape)
    _mark_duplicates(keys, fates)
    limit = np.uint64(min(int(validation_share * 2**64), 2**64 - 1))
    found, characters = np.zeros(3, dtype=np.int64), 0
    for start in range(0, len(keys), CHUNK):
        part = slice(start, start + CHUNK)
        fates[part] = np.where(fates[part] == DUPLICATE, DUPLICATE, np.where(keys[part] < limit, VALIDATION, TRAIN))
        found += np.bincount(fates[part], minlength=3)
        characters += int(lengths[part][fates[part] != DUPLICATE].sum(dtype=np.int64))
    fates.flush()
    for name in ("keys.bin", "lengths.bin"):
        (directory / name).unlink()
    documents = int(found[TRAIN] + found[VALIDATION])
    if 0 in (found[TRAIN], found[VALIDATION]):
        raise UserError(
            f"--corpus: {documents} documents are too few to hold some out for validation; give more "
            "text (in .txt files an empty line ends a document) or a larger --validation_share"
        )
    atomic_write_json(directory / "portions.json", counts)
    return SurveyFacts(documents, characters, int(found[DUPLICATE]), fingerprint)


def _join_hashes(hashes: list[Path], validation_share: float, directory: Path) -> str:
    """Writes keys.bin and lengths.bin of all documents; returns the fingerprint: of the text, not of its files."""
    digest = hashlib.sha256(repr(validation_share).encode())
    with (directory / "keys.bin").open("wb") as keys, (directory / "lengths.bin").open("wb") as lengths:
        for file in hashes:
            with file.open("rb") as stream:
                while len(part := np.fromfile(stream, dtype=HASH, count=CHUNK)):
                    digest.update(part["key"].tobytes())
                    keys.write(part["key"].astype(np.uint64).tobytes())
                    lengths.write(part["length"].astype(np.uint32).tobytes())
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
