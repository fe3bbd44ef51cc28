"""Text to packed tokens: seconds, MiB/s and peak memory of our preparation and of `run_mlm.py`'s.

    python -m benchmarks.prepare simplewiki.txt --times 1 10

Ours is `pretrain`'s preparation without training the tokenizer: find duplicates, split, tokenize, pack. Stock is what
`run_mlm.py` does: `datasets.load_dataset("text")`, `map` with a fast tokenizer, `map` to group the tokens into blocks,
and no deduplication. Both use the same tokenizer. A text is repeated with the number of the copy at the start of each
line, so that no line is a duplicate of another.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer

from hf_tiny_transformer.common.errors import UserError, run_command
from pretrain.metrics import peak_memory

from .command import measure_in_process, parse

BLOCK = 128
MIB = 2**20


@dataclass(frozen=True)
class PrepareSettings:
    """What to measure.

    Args:
        text: A .txt file.
        times: How often the text is repeated, for each row of the table.
        side: Measure only this side, in this process, and print JSON; used internally.
        tokenizer: Directory of the tokenizer, written by the side of that name; used internally.
    """

    text: Path
    times: list[int] = field(default_factory=lambda: [1, 10])
    side: Literal["tokenizer", "ours", "stock"] | None = None
    tokenizer: Path | None = None


def main() -> None:
    settings = parse("prepare", __doc__, PrepareSettings, positional=["text"])
    if settings.side:
        measure(settings)
        return
    if not settings.text.is_file():
        raise UserError(f"{settings.text}: no such file; expected a .txt file")
    print("| text, MiB | | seconds | MiB/s | peak memory, MiB |\n| ---: | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer, text = f"--tokenizer={folder}/tokenizer", Path(folder) / "text.txt"
        measure_in_process("prepare", str(settings.text.resolve()), "--side=tokenizer", tokenizer)
        for times in settings.times:
            repeat(settings.text, times, text)
            size = text.stat().st_size / MIB
            for side in ("ours", "stock"):
                seconds, memory = measure_in_process("prepare", str(text), f"--side={side}", tokenizer)
                figures = f"{seconds:,.1f} | {size / seconds:,.2f} | {memory / MIB:,.0f}"
                print(f"| {size:,.0f} | {side} | {figures} |", flush=True)


def repeat(text: Path, times: int, target: Path) -> None:
    """Write a text several times, each copy marked with its number."""
    with target.open("w", encoding="utf-8") as stream:
        for number in range(times):
            with text.open(encoding="utf-8") as lines:
                stream.writelines(line if number == 0 or not line.strip() else f"{number} {line}" for line in lines)


def measure(settings: PrepareSettings) -> None:
    """Print seconds and peak memory of one side, as JSON."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_TINY_TRANSFORMER_CACHE"] = cache
        run = {"tokenizer": train, "ours": ours, "stock": stock}[settings.side]
        start = time.perf_counter()
        run(settings.text, settings.tokenizer, Path(cache))
        print(json.dumps([time.perf_counter() - start, peak_memory()]))


# Each side imports what it needs, so that its peak memory has nothing of the other.
def train(text: Path, tokenizer_path: Path, cache: Path) -> None:
    """Train the tokenizer of both sides."""
    from pretrain.data.documents import open_corpus
    from pretrain.data.tokenizer import train_tokenizer

    corpus = open_corpus([str(text)], text_field="text", validation_share=0.01)
    settings = {"vocab_size": 8192, "lowercase": True, "max_length": 512, "family": "encoder", "progress": False}
    train_tokenizer(corpus.train, **settings).save_pretrained(tokenizer_path)


def ours(text: Path, tokenizer_path: Path, cache: Path) -> None:
    """Find duplicates, split, tokenize and pack."""
    from pretrain.data.documents import documents_of, open_corpus
    from pretrain.data.packed import join_shards, write_shards

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    corpus = open_corpus([str(text)], text_field="text", validation_share=0.01)
    write_shards(documents_of(corpus.portions[0]), corpus.fates(0), tokenizer, cache / "shards")
    join_shards([cache / "shards"], cache, len(tokenizer))


def stock(text: Path, tokenizer_path: Path, cache: Path) -> None:
    """Follow `run_mlm.py`, in one process and with its default batches of 1,000 rows."""
    import datasets

    def tokenize(rows: dict[str, list]) -> dict[str, list]:
        return tokenizer(rows["text"], return_special_tokens_mask=True)

    def group(rows: dict[str, list]) -> dict[str, list]:
        joined = {name: list(chain(*values)) for name, values in rows.items()}
        whole = len(joined["input_ids"]) // BLOCK * BLOCK
        return {name: [tokens[i : i + BLOCK] for i in range(0, whole, BLOCK)] for name, tokens in joined.items()}

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    lines = datasets.load_dataset("text", data_files=str(text), split="train", cache_dir=str(cache))
    lines.map(tokenize, batched=True, remove_columns=["text"]).map(group, batched=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
