"""Documents as one memory-mapped array of token ids: [CLS] document [SEP] [CLS] document [SEP] ...

A block of any size is a slice of it, so a stage with longer rows needs no second packing. Where a block begins inside a
document, it begins a document of its own.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from hf_tiny_transformer.runs import UserError

BATCH = 1000  # documents that go through the tokenizer at once, on all cores: bounds memory
SHARD = 50_000  # documents whose tokens a crash can cost


@dataclass(frozen=True)
class PackedTokens:
    """`tokens` (N,) is memory-mapped; `cls_id` marks where a document starts."""

    tokens: np.ndarray
    cls_id: int

    def num_blocks(self, block_size: int) -> int:
        """Whole blocks; a rest shorter than one is left out."""
        return len(self.tokens) // block_size

    def blocks(self, indices: np.ndarray, block_size: int) -> np.ndarray:
        """(B,) block numbers -> (B, block_size) int64 token ids."""
        return np.stack([self.tokens[i * block_size : (i + 1) * block_size] for i in indices]).astype(np.int64)

    def document_starts(self) -> np.ndarray:
        """(D,) index of each document's [CLS]."""
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
    shards.mkdir(parents=True, exist_ok=True)
    documents, finished = iter(documents), []
    while batch := list(islice(documents, BATCH)):
        shard = shards / f"{len(finished):06d}.bin"
        rest = islice(documents, SHARD - len(batch))
        if shard.is_file():
            deque(rest, maxlen=0)
        else:
            _write_shard(chain(batch, rest), tokenizer, shard)
        finished.append(shard)
    with path.open("wb") as stream:
        for shard in finished:
            with shard.open("rb") as part:
                shutil.copyfileobj(part, stream, 2**20)
        return stream.tell() // _dtype(len(tokenizer)).itemsize


def _write_shard(documents: Iterator[str], tokenizer: PreTrainedTokenizerFast, shard: Path) -> None:
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()  # of a foreign tokenizer
    backend.encode_special_tokens = True
    staging = shard.with_suffix(".part")
    with staging.open("wb") as stream:
        while batch := list(islice(documents, BATCH)):
            for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
                ids = [tokenizer.cls_token_id, *encoding.ids, tokenizer.sep_token_id]
                stream.write(np.asarray(ids, dtype=_dtype(len(tokenizer))).tobytes())
    backend.encode_special_tokens = False
    os.replace(staging, shard)


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def open_packed(path: Path, vocab_size: int, cls_id: int, *, block_size: int, what: str) -> PackedTokens:
    """Maps a file of `write_packed`.

    Raises:
        UserError: it holds less than one block.
    """
    count = path.stat().st_size // _dtype(vocab_size).itemsize
    if count < block_size:
        raise UserError(
            f"corpus: the {what} documents hold {count} tokens, less than one block of {block_size}; "
            "give more text or a smaller stages[].block_size"
        )
    return PackedTokens(np.memmap(path, dtype=_dtype(vocab_size), mode="r"), cls_id)
