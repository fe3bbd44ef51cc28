"""Text to packed tokens: seconds, MB/s and peak memory, beside `run_mlm.py`'s way, on a text and on ten times as much.

    python -m benchmarks.prepare simplewiki.txt --times 1 10

Ours is `pretrain`'s preparation without training the tokenizer: survey (duplicates, split, fingerprint), tokenising,
packing. Stock is what `run_mlm.py` does: `datasets.load_dataset("text")`, `map` with a fast tokenizer, `map` to group
the tokens into blocks; no duplicates are dropped. Both get the same tokenizer. A text is multiplied by marking each
line with the number of its copy, so that no line is a duplicate of another's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

from transformers import AutoTokenizer

from hf_tiny_transformer.common.errors import UserError, run_command
from pretrain.metrics import peak_memory

BLOCK = 128
MIB = 2**20


def main() -> None:
    """Each measurement in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path, help="a .txt file")
    parser.add_argument("--times", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--side", choices=["tokenizer", "ours", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure(arguments.side, arguments.text, arguments.tokenizer)
        return
    if not arguments.text.is_file():
        raise UserError(f"{arguments.text}: no such file; name a .txt file")
    print("| text, MiB | | seconds | MiB/s | peak memory, MiB |\n| ---: | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer"
        _in_a_process("tokenizer", arguments.text, tokenizer)
        for times in arguments.times:
            text = _multiplied(arguments.text, times, Path(folder) / f"{times}.txt")
            size = text.stat().st_size / MIB
            for side in ("ours", "stock"):
                seconds, memory = _in_a_process(side, text, tokenizer)
                print(
                    f"| {size:,.0f} | {side} | {seconds:,.1f} | {size / seconds:,.2f} | {memory / MIB:,.0f} |",
                    flush=True,
                )
            text.unlink()


def measure(side: str, text: Path, tokenizer_path: Path) -> None:
    """Prints seconds and peak memory of one side, as JSON; the tokenizer's side leaves a tokenizer."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_TINY_TRANSFORMER_CACHE"] = cache
        start = time.perf_counter()
        {"tokenizer": train, "ours": ours, "stock": stock}[side](text, tokenizer_path, cache)
        print(json.dumps([time.perf_counter() - start, peak_memory()]))


def train(text: Path, tokenizer_path: Path, cache: str) -> None:
    """One tokenizer for both, from the text as it is."""
    from pretrain.corpus import open_corpus
    from pretrain.tokenizer import train_tokenizer

    corpus = open_corpus([str(text)], text_field="text", validation_share=0.01)
    settings = {"vocab_size": 8192, "lowercase": True, "max_length": 512, "family": "encoder", "progress": False}
    train_tokenizer(corpus.train, **settings).save_pretrained(tokenizer_path)


def ours(text: Path, tokenizer_path: Path, cache: str) -> None:
    """Survey, tokenise, pack."""
    from pretrain.corpus import open_corpus
    from pretrain.packing import write_packed

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    corpus = open_corpus([str(text)], text_field="text", validation_share=0.01)
    for name, documents in (("train", corpus.train()), ("validation", corpus.validation())):
        write_packed(documents, tokenizer, Path(cache) / f"{name}.bin", Path(cache) / name)


def stock(text: Path, tokenizer_path: Path, cache: str) -> None:
    """`run_mlm.py`'s steps, one process, its default batches of 1,000."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path)
    lines = datasets.load_dataset("text", data_files=str(text), split="train", cache_dir=cache)
    tokenized = lines.map(_tokenize(tokenizer), batched=True, remove_columns=["text"])
    tokenized.map(_group, batched=True)


def _tokenize(tokenizer) -> Callable[[dict], dict]:
    return lambda rows: tokenizer(rows["text"], return_special_tokens_mask=True)


def _group(rows: dict[str, list]) -> dict[str, list]:
    joined = {name: list(chain(*values)) for name, values in rows.items()}
    whole = len(next(iter(joined.values()))) // BLOCK * BLOCK
    return {name: [tokens[i : i + BLOCK] for i in range(0, whole, BLOCK)] for name, tokens in joined.items()}


def _multiplied(text: Path, times: int, target: Path) -> Path:
    with target.open("w", encoding="utf-8") as stream:
        for number in range(times):
            with text.open(encoding="utf-8") as lines:
                for line in lines:
                    stream.write(line if number == 0 or not line.strip() else f"{number} {line}")
    return target


def _in_a_process(side: str, text: Path, tokenizer: Path) -> list[float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.prepare",
        str(text.resolve()),
        "--side",
        side,
        "--tokenizer",
        str(tokenizer),
    ]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(run_command(main))
