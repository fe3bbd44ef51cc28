"""Tokens a second: ours beside stock BertForMaskedLM, each in processes of its own, taking turns.

    python -m benchmarks.throughput --shape 2x128 --threads 1
    python -m benchmarks.throughput --shape 12x768 --length 512 --batch 64        (on a GPU: bf16)

Stock is what `run_mlm.py` trains: logits of every position, dropout 0.1, AdamW, gradient clipping, masks drawn by
`DataCollatorForLanguageModeling`. Its loop here has none of `Trainer`'s own costs. Ours is `pretrain`'s loop as it
stands, batches and masks included, on a model of the same shape. On one CPU thread seconds are CPU time, the thread
that builds batches included, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from hf_tiny_transformer.common.environment import keep_freed_memory
from pretrain.metrics import peak_memory
from pretrain.speed import matrix_rate, step_flops, synchronize

SHAPES = {"2x128": (2, 128, 2), "4x256": (4, 256, 4), "12x768": (12, 768, 12)}
MASK_RATE = 0.15
DOCUMENT = 230  # tokens, about what the sample corpus has
FIRST_WORD = 5  # ids below are special
WARM_UP = 3


def main() -> None:
    """Takes turns, prints a line a round and the table at the end."""
    arguments = _arguments()
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    rounds = []
    for number in range(arguments.rounds):
        rounds.append({side: _in_a_process(side) for side in ("stock", "ours")})
        ratio = rounds[-1]["ours"]["rate"] / rounds[-1]["stock"]["rate"]
        print(f"round {number + 1}/{arguments.rounds}: ratio {ratio:.2f}", file=sys.stderr, flush=True)
    report(arguments, rounds)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """One side in this process: tokens a second, FLOP/s, the machine's matrix rate now, peak memory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(arguments.threads)
    if arguments.side == "ours":
        keep_freed_memory()
    model, step = (stock if arguments.side == "stock" else ours)(arguments, device)
    for number in range(WARM_UP):
        step(number)
    synchronize(device)
    clock = time.process_time if device.type == "cpu" and arguments.threads == 1 else time.perf_counter
    start, steps = clock(), 0
    while steps < 3 or clock() - start < arguments.seconds:
        step(WARM_UP + steps)
        synchronize(device)
        steps += 1
    seconds = (clock() - start) / steps
    memory = peak_memory()
    tokens = arguments.batch * arguments.length
    predicted = tokens if arguments.side == "stock" else round(MASK_RATE * arguments.length) * arguments.batch
    return {
        "rate": tokens / seconds,
        "flops": step_flops(model, rows=arguments.batch, length=arguments.length, predicted=predicted) / seconds,
        "matrix_rate": matrix_rate(device, seconds=1.0, clock=clock),
        "memory": memory,
    }


def stock(arguments: argparse.Namespace, device: torch.device) -> tuple[PreTrainedModel, Callable[[int], None]]:
    """Stock BERT, and one step of it under `run_mlm.py`'s settings."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=arguments.vocab_size, **_shape(arguments))).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.from_numpy(_tokens(arguments))

    def step(number: int) -> None:
        ids = tokens[number % len(tokens)]
        hidden = torch.rand(ids.shape) < MASK_RATE
        labels = torch.where(hidden, ids, -100)
        draw = torch.rand(ids.shape)  # the collator's 80 / 10 / 10
        ids = torch.where(hidden & (draw < 0.8), 4, ids)
        ids = torch.where(hidden & (draw > 0.9), torch.randint_like(ids, FIRST_WORD, arguments.vocab_size), ids)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(input_ids=ids.to(device), labels=labels.to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def ours(arguments: argparse.Namespace, device: torch.device) -> tuple[PreTrainedModel, Callable[[int], None]]:
    """A model of the same shape, and one step of `pretrain`'s loop, its batches made by its own code meanwhile."""
    from accelerate import Accelerator

    from hf_tiny_transformer import TinyTransformerBertConfig, TinyTransformerBertForMaskedLM
    from pretrain.batches import BatchSource
    from pretrain.loop import TrainingLoop
    from pretrain.objectives import make_objective
    from pretrain.optimizer import build_optimizers
    from pretrain.packing import PackedTokens
    from pretrain.recipe import Recipe, Stage
    from pretrain.tokenizer import VocabularyFacts

    torch.manual_seed(0)
    config = TinyTransformerBertConfig(
        vocab_size=arguments.vocab_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=arguments.attention,
        **_shape(arguments),
    )
    recipe = Recipe(
        family="bert",
        model={},
        stages=[Stage(1.0, arguments.length, arguments.batch, MASK_RATE)],
        vocab_size=arguments.vocab_size,
        optimizer=arguments.optimizer,
        micro_batch_size=arguments.micro_batch or arguments.batch,
    )
    special = np.arange(arguments.vocab_size) < FIRST_WORD
    ordinary = np.flatnonzero(~special)
    facts = VocabularyFacts(2, 3, 4, 0, special, np.ones(arguments.vocab_size, bool), ordinary, ordinary[:0])
    data = PackedTokens(_tokens(arguments).reshape(-1), cls_id=2)
    objective = make_objective("mlm", data, facts, masking="token")
    batches = BatchSource(objective, seed=0, single_row=arguments.attention.startswith("flash"))
    accelerator = Accelerator(
        mixed_precision="bf16" if device.type == "cuda" else "no",
        dynamo_backend="inductor" if arguments.compile else None,
    )
    model = TinyTransformerBertForMaskedLM(config)
    model, *optimizers = accelerator.prepare(model, *build_optimizers(model, recipe))
    loop = TrainingLoop(accelerator, model.train(), optimizers, batches, recipe, max_steps=10**6)
    prepared = loop.prefetched(0)

    def step(number: int) -> None:
        index, _, micro_batches = next(prepared)
        loop.step(index, micro_batches)

    return accelerator.unwrap_model(model), step


def report(arguments: argparse.Namespace, rounds: list[dict[str, dict[str, float]]]) -> None:
    """The table, in Markdown: medians over the rounds, and the ratio as the median of the rounds' own ratios."""

    def median(side: str, what: str) -> float:
        return statistics.median(one[side][what] for one in rounds)

    threads = "GPU" if torch.cuda.is_available() else f"{arguments.threads} thread{'s' * (arguments.threads > 1)}"
    print(
        f"{arguments.shape}, vocabulary {arguments.vocab_size:,}, batch {arguments.batch} x {arguments.length}, "
        f"{100 * MASK_RATE:.0f} % hidden, {threads}, {arguments.rounds} rounds; ours: {arguments.optimizer}, "
        f"{arguments.attention}{', compiled' if arguments.compile else ''}\n"
    )
    print("| | tokens/s | GFLOP/s needed | share of the matrix rate | peak memory, GiB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for side in ("stock", "ours"):
        share = statistics.median(one[side]["flops"] / one[side]["matrix_rate"] for one in rounds)
        figures = f"{median(side, 'rate'):,.0f} | {median(side, 'flops') / 1e9:,.1f} | {100 * share:.0f} %"
        print(f"| {side} | {figures} | {median(side, 'memory') / 2**30:.2f} |")
    ratios = sorted(one["ours"]["rate"] / one["stock"]["rate"] for one in rounds)
    rate = statistics.median(one[side]["matrix_rate"] for one in rounds for side in one)
    print(f"\nratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", end="; ")
    print(f"matrix product {rate / 1e9:,.0f} GFLOP/s")


def _shape(arguments: argparse.Namespace) -> dict[str, int]:
    layers, width, heads = SHAPES[arguments.shape]
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def _tokens(arguments: argparse.Namespace) -> np.ndarray:
    """(steps, B, T) token ids, a [CLS] now and then: what is in them does not change the speed."""
    generator = np.random.default_rng(0)
    ids = generator.integers(FIRST_WORD, arguments.vocab_size, size=(64, arguments.batch, arguments.length))
    ids.reshape(-1)[::DOCUMENT] = 2
    return ids


def _in_a_process(side: str) -> dict[str, float]:
    """This program again, for one side: allocator settings and peak memory are a process's own."""
    command = [sys.executable, "-m", "benchmarks.throughput", *sys.argv[1:], "--side", side]
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="2x128")
    parser.add_argument("--vocab-size", type=int, default=30522)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, help="ours only; the whole batch by default")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw", help="ours only; stock has AdamW")
    parser.add_argument("--attention", default="sdpa", help="ours only: sdpa, flash_attention_2, ...")
    parser.add_argument("--compile", action="store_true", help="ours only: torch.compile, as accelerate does it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="timed, a side and round")
    parser.add_argument("--side", choices=["stock", "ours"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
