"""Tokens per second of our pretraining and of stock BertForMaskedLM, in turns, each in processes of its own.

    python -m benchmarks.throughput --shape 2x128 --threads 1
    python -m benchmarks.throughput --shape 12x768 --length 512 --batch 64        (on a GPU: bf16)

Stock is what `run_mlm.py` trains: logits of every position, dropout 0.1, AdamW, gradient clipping, masks drawn as in
`DataCollatorForLanguageModeling`. Its loop here has none of `Trainer`'s own costs. Ours is `pretrain`'s loop with its
batches and masks, on a model of the same shape. With one CPU thread, seconds are CPU time, which includes the thread
that builds the batches, so that other work on the machine matters less.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from hf_tiny_transformer.common.environment import keep_freed_memory
from hf_tiny_transformer.common.errors import run_command
from pretrain.metrics import peak_memory
from pretrain.speed import matrix_rate, step_flops, synchronize

from .command import measure_in_process, parse

SHAPES = {"2x128": (2, 128, 2), "4x256": (4, 256, 4), "7x256": (7, 256, 4), "12x768": (12, 768, 12)}
MASK_RATE = 0.15
DOCUMENT = 230  # tokens per document, about as in the sample corpus
FIRST_WORD = 5  # lower ids are special tokens
WARM_UP = 3
ATTENTION_KERNELS = ("flash_fwd", "fmha_cutlassF", "cudnn", "flex")  # in the names of the kernels that compute it


@dataclass(frozen=True)
class ThroughputSettings:
    """What to measure.

    Args:
        shape: Layers x width of both models.
        vocab_size: Size of the vocabulary.
        batch: Rows per step.
        micro_batch: Rows per forward pass, ours only. Default: the whole batch.
        length: Tokens per row.
        optimizer: Optimizer, ours only; stock has AdamW.
        attention: Attention implementation, ours only. Default: as in pretrain.
        compile: Use torch.compile, on both sides.
        precision: Precision of matrix products, on both sides. Default: bf16 on a GPU, fp32 on a CPU.
        threads: Number of CPU threads.
        rounds: Number of measurements per side.
        seconds: Seconds of each measurement.
        side: Measure only this side, in this process, and print JSON; used internally.
    """

    shape: Literal["2x128", "4x256", "7x256", "12x768"] = "2x128"
    vocab_size: int = 30522
    batch: int = 32
    micro_batch: int | None = None
    length: int = 128
    optimizer: Literal["adamw", "muon"] = "adamw"
    attention: str | None = None
    compile: bool = False
    precision: Literal["fp32", "bf16"] | None = None
    threads: int = 1
    rounds: int = 5
    seconds: float = 10.0
    side: Literal["stock", "ours"] | None = None


def main() -> None:
    """Measure in turns; print a line for each round and the table at the end."""
    settings = parse("throughput", __doc__, ThroughputSettings)
    if settings.side:
        print(json.dumps(measure(settings)))
        return
    rounds = []
    for number in range(settings.rounds):
        rounds.append(
            {side: measure_in_process("throughput", *sys.argv[1:], f"--side={side}") for side in ("stock", "ours")}
        )
        ratio = rounds[-1]["ours"]["rate"] / rounds[-1]["stock"]["rate"]
        print(f"round {number + 1}/{settings.rounds}: ratio {ratio:.2f}", file=sys.stderr, flush=True)
    report(settings, rounds)


def measure(settings: ThroughputSettings) -> dict[str, Any]:
    """Return one side's tokens per second, FLOP/s and peak memory, and the machine's current matrix rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(settings.threads)
    if settings.side == "ours":
        keep_freed_memory()
    model, step = (stock if settings.side == "stock" else ours)(settings, device)
    for number in range(WARM_UP):
        step(number)
    synchronize(device)
    clock = time.process_time if device.type == "cpu" and settings.threads == 1 else time.perf_counter
    start, steps = clock(), 0
    while steps < 3 or clock() - start < settings.seconds:
        step(WARM_UP + steps)
        synchronize(device)
        steps += 1
    seconds = (clock() - start) / steps
    memory = peak_memory()
    kernels = gpu_kernels(lambda: step(WARM_UP + steps)) if device.type == "cuda" else {}
    tokens = settings.batch * settings.length
    predicted = tokens if settings.side == "stock" else round(MASK_RATE * settings.length) * settings.batch
    return {
        "rate": tokens / seconds,
        "flops": step_flops(model, rows=settings.batch, length=settings.length, predicted=predicted) / seconds,
        "matrix_rate": matrix_rate(device, _precision(settings, device), seconds=1.0, clock=clock),
        "memory": memory,
        "kernels": sum(count for count, _ in kernels.values()),
        "busy": sum(busy for _, busy in kernels.values()) / seconds,
        "longest": sorted(((busy, count, name[:90]) for name, (count, busy) in kernels.items()), reverse=True)[:14],
        "attention": ", ".join(sorted({name for name in ATTENTION_KERNELS for kernel in kernels if name in kernel})),
    }


def gpu_kernels(step: Callable[[], None]) -> dict[str, tuple[int, float]]:
    """Return how often each GPU kernel, copy and fill runs in one step, and its seconds in all."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    events = profile.key_averages()
    on_gpu = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    return {event.key: (event.count, event.self_device_time_total / 1e6) for event in on_gpu}


def stock(settings: ThroughputSettings, device: torch.device) -> tuple[PreTrainedModel, Callable[[int], None]]:
    """Return stock BERT, and a function that does one step with `run_mlm.py`'s settings."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=settings.vocab_size, **_shape(settings))).to(device).train()
    if settings.compile:
        model.compile(dynamic=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.from_numpy(_tokens(settings)).to(device)

    def step(number: int) -> None:
        ids = tokens[number % len(tokens)]
        masked = torch.rand(ids.shape, device=device) < MASK_RATE
        ids, labels = stock_masks(ids, masked, 4, torch.randint_like(ids, FIRST_WORD, settings.vocab_size))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=_precision(settings, device) == "bf16"):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def stock_masks(
    ids: torch.Tensor, masked: torch.Tensor, mask_id: int, random_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and labels as `DataCollatorForLanguageModeling` draws them: 80 % [MASK], 10 % random, 10 % kept."""
    draw = torch.rand(ids.shape, device=ids.device)
    inputs = torch.where(masked & (draw < 0.8), mask_id, ids)
    return torch.where(masked & (draw > 0.9), random_ids, inputs), torch.where(masked, ids, -100)


def ours(settings: ThroughputSettings, device: torch.device) -> tuple[PreTrainedModel, Callable[[int], None]]:
    """Return our model of the same shape, and a function that does one step of `pretrain`'s loop."""
    from accelerate import Accelerator

    from hf_tiny_transformer import TinyTransformerBertConfig, TinyTransformerBertForMaskedLM
    from pretrain import varlen
    from pretrain.batches import BatchSource, make_objective
    from pretrain.data.packed import PackedTokens
    from pretrain.data.tokenizer import VocabularyFacts
    from pretrain.loop import TrainingLoop
    from pretrain.optimizer import build_optimizers
    from pretrain.recipe import Recipe, Stage

    torch.manual_seed(0)
    config = TinyTransformerBertConfig(
        vocab_size=settings.vocab_size,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **_shape(settings),
    )
    recipe = Recipe(
        family="bert",
        model={},
        stages=[Stage(1.0, settings.length, settings.batch, MASK_RATE)],
        vocab_size=settings.vocab_size,
        optimizer=settings.optimizer,
        micro_batch_size=settings.micro_batch or settings.batch,
    )
    special = np.arange(settings.vocab_size) < FIRST_WORD
    ordinary = np.flatnonzero(~special)
    facts = VocabularyFacts(2, 3, 4, 0, special, np.ones(settings.vocab_size, bool), ordinary, ordinary[:0])
    data = PackedTokens(_tokens(settings).reshape(-1), cls_id=2)
    objective = make_objective("mlm", data, facts, masking="token")
    accelerator = Accelerator(mixed_precision=_precision(settings, device))
    model = TinyTransformerBertForMaskedLM(config)
    attention = settings.attention or ("varlen" if varlen.is_possible(model, packs_documents=True) else "sdpa")
    model.set_attn_implementation(attention)
    batches = BatchSource(objective, seed=0, bounds=attention == varlen.NAME)
    if settings.compile:
        model.compile(dynamic=False)
    model, *optimizers = accelerator.prepare(model, *build_optimizers(model, recipe))
    loop = TrainingLoop(accelerator, model.train(), optimizers, batches, recipe, max_steps=10**6)
    prepared = loop.prefetched(0)
    following = next(prepared)

    def step(number: int) -> None:
        nonlocal following
        launched = loop.launch(following)
        following = next(prepared)
        assert loop.finish(launched).grad_norm > 0, "all gradients are zero"

    return accelerator.unwrap_model(model), step


def report(settings: ThroughputSettings, rounds: list[dict[str, dict[str, float]]]) -> None:
    """Print the medians over the rounds as a Markdown table, and the median ratio of a round."""

    def median(side: str, figure: str) -> float:
        return statistics.median(one[side][figure] for one in rounds)

    threads = "GPU" if torch.cuda.is_available() else f"{settings.threads} thread{'s' * (settings.threads > 1)}"
    print(
        f"{settings.shape}, vocabulary {settings.vocab_size:,}, batch {settings.batch} x {settings.length}, "
        f"{100 * MASK_RATE:.0f} % masked, {threads}, {settings.rounds} rounds; ours: {settings.optimizer}, "
        f"{settings.attention or 'default attention'}{', compiled' if settings.compile else ''}\n"
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


def _precision(settings: ThroughputSettings, device: torch.device) -> str:
    return {"fp32": "no", "bf16": "bf16", None: "bf16" if device.type == "cuda" else "no"}[settings.precision]


def _shape(settings: ThroughputSettings) -> dict[str, int]:
    layers, width, heads = SHAPES[settings.shape]
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


def _tokens(settings: ThroughputSettings) -> np.ndarray:
    """Return random token ids (steps, B, T) with [CLS] at equal distances; their values do not change the speed."""
    generator = np.random.default_rng(0)
    ids = generator.integers(FIRST_WORD, settings.vocab_size, size=(64, settings.batch, settings.length))
    ids.reshape(-1)[::DOCUMENT] = 2
    return ids


if __name__ == "__main__":
    sys.exit(run_command(main))
