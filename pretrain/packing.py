"""Documents as one memory-mapped array of token ids: [CLS] document [SEP] [CLS] document [SEP] ...

A block of any size is a slice of it, so a stage with longer rows needs no second packing. Where a block begins inside a
document, it begins a document of its own.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from hf_tiny_transformer.runs import UserError, atomic_file

BATCH = 1000  # documents that go through the tokenizer at once, on all cores,
BATCH_CHARACTERS = 1_000_000  # or fewer, once they hold this many characters: bounds memory
SHARD = 50_000  # documents whose tokens a crash can cost


class JoinedTokens:
    """Arrays of token ids read as one, (N,), without a copy of the whole."""

    def __init__(self, parts: list[np.ndarray]):
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, piece: slice) -> np.ndarray:
        """A slice, over borders where it lies on one."""
        start, stop, _ = piece.indices(len(self))
        first, last = np.searchsorted(self.starts, (start, max(start, stop - 1)), side="right") - 1
        pieces = [
            part[max(0, start - offset) : max(0, stop - offset)]
            for part, offset in zip(self.parts[first : last + 1], self.starts[first:], strict=False)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self.parts[0][:0]])


@dataclass(frozen=True)
class PackedTokens:
    """`tokens` (N,) is memory-mapped, from one file or several; `cls_id` marks where a document starts."""

    tokens: np.ndarray | JoinedTokens
    cls_id: int

    def num_blocks(self, block_size: int) -> int:
        """Whole blocks; a rest shorter than one is left out."""
        return len(self.tokens) // block_size

    def blocks(self, indices: np.ndarray, block_size: int) -> np.ndarray:
        """(B,) block numbers -> (B, block_size) int64 token ids."""
        return np.stack([self.tokens[i * block_size : (i + 1) * block_size] for i in indices]).astype(np.int64)

    def document_starts(self) -> np.ndarray:
        """(D,) index of each document's [CLS]."""
        if isinstance(self.tokens, JoinedTokens):
            parts = zip(self.tokens.parts, self.tokens.starts, strict=False)
            return np.concatenate([np.flatnonzero(part == self.cls_id) + start for part, start in parts])
        return np.flatnonzero(self.tokens == self.cls_id)


def positions_within_documents(blocks: np.ndarray, cls_id: int) -> np.ndarray:
    """(B, T) token ids -> (B, T) positions, counted from 0 at each row's start and at each [CLS].

    The model takes the restarts as document borders: no token sees a neighbouring document.
    """
    columns = np.arange(blocks.shape[1])
    starts = np.where(blocks == cls_id, columns, 0)
    return columns - np.maximum.accumulate(starts, axis=1)


def write_packed(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, path: Path, shards: Path) -> int:
    """Tokenises and appends document by document, so that memory stays flat; returns the count of tokens.

    The work is kept in the folder `shards`, a file for every SHARD documents, until it is whole: begun anew after a
    crash, it goes on behind the last shard. Text that looks like a special token ("[MASK]" in a forum post) is read as
    text.
    """
    documents, finished = iter(documents), []
    for first in documents:
        shard = shards / f"{len(finished):06d}.bin"
        rest = islice(documents, SHARD - 1)
        if shard.is_file():
            deque(rest, maxlen=0)
        else:
            _write_shard(chain([first], rest), tokenizer, shard)
        finished.append(shard)
    with atomic_file(path) as stream:
        for shard in finished:
            with shard.open("rb") as part:
                shutil.copyfileobj(part, stream, 2**20)
    return count_tokens(path, len(tokenizer))


def _write_shard(documents: Iterator[str], tokenizer: PreTrainedTokenizerFast, shard: Path) -> None:
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()  # of a foreign tokenizer
    backend.encode_special_tokens = True
    with atomic_file(shard) as stream:
        for batch in _batches(documents):
            for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
                ids = [tokenizer.cls_token_id, *encoding.ids, tokenizer.sep_token_id]
                stream.write(np.asarray(ids, dtype=_dtype(len(tokenizer))).tobytes())
    backend.encode_special_tokens = False


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    """BATCH documents each, or fewer long ones."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if len(batch) == BATCH or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def token_files(path: Path) -> list[Path]:
    """The files of packed tokens behind `path`: itself, or what lies in this folder, in order."""
    return sorted(path.glob("*.bin")) if path.is_dir() else [path]


def count_tokens(path: Path, vocab_size: int) -> int:
    """Tokens in a file of `write_packed`, or in a folder of them."""
    return sum(file.stat().st_size for file in token_files(path)) // _dtype(vocab_size).itemsize


def open_packed(path: Path, vocab_size: int, cls_id: int, *, block_size: int, what: str) -> PackedTokens:
    """Maps a file of `write_packed`, or all in a folder, one behind the other: a block may lie on their border.

    Raises:
        UserError: it holds less than one block.
    """
    count = count_tokens(path, vocab_size)
    if count < block_size:
        raise UserError(
            f"corpus: the {what} documents hold {count} tokens, less than one block of {block_size}; "
            "give more text or a smaller stages[].block_size"
        )
    files = [file for file in token_files(path) if file.stat().st_size > 0]
    parts = [np.memmap(file, dtype=_dtype(vocab_size), mode="r") for file in files]
    return PackedTokens(parts[0] if len(parts) == 1 else JoinedTokens(parts), cls_id)
