"""Documents to one memory-mapped array of token ids: `[CLS] document [SEP] [CLS] ...`.

A block of any size is a slice of the array, so that a stage with longer rows needs no second packing. A block that
begins inside a document treats the rest as a document of its own.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import atomic_directory, atomic_file, is_intact

from .documents import DUPLICATE, TRAIN, VALIDATION

BATCH = 1000  # documents that are tokenised at once, on all cores,
BATCH_CHARACTERS = 1_000_000  # or fewer, once they have this many characters: bounds memory
SHARD = 50_000  # documents that are tokenised again after a crash, at most
SPLITS = {TRAIN: "train", VALIDATION: "validation"}


@dataclass(frozen=True)
class PackedTokens:
    """Token ids (N,), usually memory-mapped; `cls_id` begins a document."""

    tokens: np.ndarray
    cls_id: int

    def num_blocks(self, block_size: int) -> int:
        """Return the number of whole blocks; the remainder is not used."""
        return len(self.tokens) // block_size

    def blocks(self, indices: np.ndarray, block_size: int) -> np.ndarray:
        """Return the token ids of the blocks with these numbers, (B, block_size) int64."""
        blocks = self.tokens[: self.num_blocks(block_size) * block_size].reshape(-1, block_size)
        return blocks[indices].astype(np.int64)

    def document_starts(self) -> np.ndarray:
        """Return the index of each document's [CLS], (D,)."""
        return np.flatnonzero(self.tokens == self.cls_id)

    def __reduce__(self) -> tuple[Callable[..., PackedTokens], tuple[Any, ...]]:
        """Pickle the name of a mapped file, not its tokens: another process maps it again."""
        if isinstance(self.tokens, np.memmap):
            return _map_file, (self.tokens.filename, self.tokens.dtype, self.cls_id)
        return PackedTokens, (self.tokens, self.cls_id)


def positions_since(starts: np.ndarray) -> np.ndarray:
    """Return positions (B, T) that restart at 0 at each row and at each of `starts` (B, T), such as every [CLS].

    The model treats the restarts as document borders: no token attends to another document.
    """
    columns = np.arange(starts.shape[1])
    return columns - np.maximum.accumulate(np.where(starts, columns, 0), axis=1)


def write_shards(
    documents: Iterable[str], fates: np.ndarray, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Tokenise documents and write shards of token ids, continuing after the shards that are already there.

    `directory` receives a folder with train.bin and validation.bin for every SHARD documents, so that memory stays
    flat. Text that looks like a special token, such as "[MASK]" in a forum post, is read as text.
    """
    texts, shards = iter(documents), -(-len(fates) // SHARD)
    folders = [directory / f"{number:06d}" for number in range(shards)]
    is_written = list(map(is_intact, folders))
    if all(is_written):
        return
    for number, folder in enumerate(folders):
        part = zip(islice(texts, SHARD), fates[number * SHARD : (number + 1) * SHARD], strict=True)
        if is_written[number]:
            deque(part, maxlen=0)  # only read
        else:
            _write_shard(part, tokenizer, folder)


def join_shards(directories: Iterable[Path], directory: Path, vocab_size: int) -> dict[str, int]:
    """Join the shards of all portions to train.bin and validation.bin, and return their numbers of tokens."""
    directories, counts = list(directories), {}
    for split in SPLITS.values():
        path = directory / f"{split}.bin"
        with atomic_file(path) as stream:
            for shard in (file for folder in directories for file in sorted(folder.glob(f"[0-9]*/{split}.bin"))):
                with shard.open("rb") as part:
                    shutil.copyfileobj(part, stream, 2**20)
        counts[split] = path.stat().st_size // _dtype(vocab_size).itemsize
    return counts


def open_packed(path: Path, vocab_size: int, cls_id: int, *, block_size: int, what: str) -> PackedTokens:
    """Map a file of packed tokens; `what` names its split in errors.

    Raises:
        UserError: The file has less than one block.
    """
    count = path.stat().st_size // _dtype(vocab_size).itemsize
    if count < block_size:
        raise UserError(
            f"--corpus: the {what} documents have {count} tokens, less than one block of {block_size}; "
            "give more text or a smaller stages[].block_size"
        )
    return _map_file(path, _dtype(vocab_size), cls_id)


def _map_file(path: Path, dtype: np.dtype, cls_id: int) -> PackedTokens:
    return PackedTokens(np.memmap(path, dtype=dtype, mode="r"), cls_id)


def _write_shard(documents: Iterable[tuple[str, int]], tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    dtype, kept = _dtype(len(tokenizer)), ((text, fate) for text, fate in documents if fate != DUPLICATE)
    with atomic_directory(directory) as staging, ExitStack() as files:
        streams = {fate: files.enter_context((staging / f"{name}.bin").open("wb")) for fate, name in SPLITS.items()}
        for batch in _batches(kept):
            encodings = backend.encode_batch_fast([text for text, _ in batch], add_special_tokens=False)
            for encoding, (_, fate) in zip(encodings, batch, strict=True):
                ids = [tokenizer.cls_token_id, *encoding.ids, tokenizer.sep_token_id]
                streams[fate].write(np.asarray(ids, dtype=dtype).tobytes())
    backend.encode_special_tokens = False


def _batches(documents: Iterable[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    """Group documents into batches of BATCH, or fewer long ones."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document[0])
        if len(batch) == BATCH or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
