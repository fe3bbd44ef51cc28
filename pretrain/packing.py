"""Documents as one memory-mapped array of token ids: [CLS] document [SEP] [CLS] document [SEP] ...

A block of any size is a slice of it, so a stage with longer rows needs no second packing. Where a block begins inside a
document, it begins a document of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from hf_tiny_transformer.runs import UserError

BATCH = 1000  # documents that go through the tokenizer at once: bounds memory


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


def write_packed(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, path: Path) -> int:
    """Tokenises and appends document by document, so that memory stays flat; returns the count of tokens.

    Text that looks like a special token ("[MASK]" in a forum post) is read as text.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.encode_special_tokens = True
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    count = 0
    with path.open("wb") as stream:
        for batch in _batched(documents):
            for encoding in backend.encode_batch_fast(batch, add_special_tokens=False):
                ids = [tokenizer.cls_token_id, *encoding.ids, tokenizer.sep_token_id]
                stream.write(np.asarray(ids, dtype=dtype).tobytes())
                count += len(ids)
    backend.encode_special_tokens = False
    return count


def open_packed(path: Path, vocab_size: int, cls_id: int, *, block_size: int, what: str) -> PackedTokens:
    """Maps a file of `write_packed`.

    Raises:
        UserError: it holds less than one block.
    """
    count = path.stat().st_size // (2 if vocab_size <= 2**16 else 4)
    if count < block_size:
        raise UserError(
            f"corpus: the {what} documents hold {count} tokens, less than one block of {block_size}; "
            "give more text or a smaller stages[].block_size"
        )
    return PackedTokens(np.memmap(path, dtype=np.uint16 if vocab_size <= 2**16 else np.uint32, mode="r"), cls_id)


def _batched(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
