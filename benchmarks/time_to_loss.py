"""Core-seconds to the same loss: our recipe compared with stock BERT on the same text, tokenizer and held-out masks.

    python -m benchmarks.time_to_loss stock --minutes 15 --learning-rates 5e-4 1e-3 2e-3 --output runs/time-to-loss
    python -m benchmarks.time_to_loss stock --minutes 60 --learning-rates 1e-3 --output runs/time-to-loss
    python -m benchmarks.time_to_loss ours --minutes 15 --output runs/time-to-loss
    python -m benchmarks.time_to_loss report --output runs/time-to-loss

Stock is BertForMaskedLM 2x128 as `run_mlm.py` trains it: packed rows in which documents attend to each other, logits of
every position, dropout 0.1, AdamW, 15 % masked, linear decay to 0 over its own time. Its best learning rate counts.
Ours is a recipe, trained by `pretrain`'s own code, with no more parameters than stock. Both are measured on the same
masked tokens of the same held-out blocks. The time of these measurements does not count; all other time does. Time is
CPU time (core-minutes), which depends little on other work on the machine. Stock's schedule follows that clock, so that
a slower machine does fewer steps in the same time.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM

from hf_tiny_transformer.common.environment import keep_freed_memory
from hf_tiny_transformer.common.errors import UserError, run_command
from hf_tiny_transformer.common.files import atomic_write_json, require_writable
from pretrain.batches import batch_source, validation_batches
from pretrain.checkpoint import Progress
from pretrain.cli import parse
from pretrain.data.prepare import PreparedData, prepare_data
from pretrain.data.tokenizer import vocabulary_facts
from pretrain.recipe import Recipe
from pretrain.run import build_loop
from pretrain.settings import RunSettings
from pretrain.validation import validate

from .throughput import stock_masks

BATCH, LENGTH, MASK_RATE = 32, 128, 0.15
WARM_UP = 0.05  # share of the run
MEASUREMENTS = 60  # per run; denser at its start
STEPS_TO_RATE = 20


def main() -> None:
    """Train one side, or compare the finished runs."""
    given, recipe_flags = _arguments()
    if given.what == "report":
        report(given.output)
        return
    require_writable("--output", given.output / "run.json")
    torch.set_num_threads(given.threads)
    settings, recipe = parse(["--output", "-", *recipe_flags])
    recipe.validate()
    data = prepare_data(given.corpus, "text", recipe)
    if given.what == "ours":
        run_ours(settings, recipe, data, given)
        return
    for learning_rate in given.learning_rates:
        run_stock(recipe, data, given, learning_rate)


class Clock:
    """Core-seconds of training: CPU time of all threads of this process, without the time between pause and resume."""

    def __init__(self, minutes: float):
        self.budget, self.spent = 60 * minutes, 0.0
        self.started: float | None = time.process_time()

    @property
    def seconds(self) -> float:
        """Seconds spent so far."""
        return self.spent + (0.0 if self.started is None else time.process_time() - self.started)

    @property
    def share(self) -> float:
        """Share of the budget that is spent, at most 1."""
        return min(1.0, self.seconds / self.budget)

    def pause(self) -> None:
        """Stop the clock."""
        self.spent, self.started = self.seconds, None

    def resume(self) -> None:
        """Start the clock again."""
        self.started = time.process_time()


class Curve:
    """Held-out losses over training seconds, measured at fixed shares of the budget, while the clock is paused."""

    def __init__(self, clock: Clock, measure: Callable[[], float]):
        self.clock, self.measure = clock, measure
        self.due = [((i + 1) / MEASUREMENTS) ** 2 for i in range(MEASUREMENTS)]
        self.points: list[tuple[float, int, float]] = []

    @property
    def is_full(self) -> bool:
        """Whether all losses are measured."""
        return len(self.points) == MEASUREMENTS

    def after_step(self, step: int) -> None:
        """Measure the loss if it is due."""
        if self.is_full or self.clock.share < self.due[len(self.points)]:
            return
        self.clock.pause()
        loss = self.measure()
        while not self.is_full and self.clock.share >= self.due[len(self.points)]:
            self.points.append((round(self.clock.spent, 2), step, loss))
        print(f"{self.clock.spent:7.1f} s, step {step}: held-out loss {loss:.3f}", file=sys.stderr, flush=True)
        self.clock.resume()


@torch.no_grad()
def stock_loss(model: BertForMaskedLM, batches: list[dict[str, torch.Tensor]]) -> float:
    """Return stock's loss in nats per masked token, on the rows of `validate`; documents attend to each other."""
    model.eval()
    loss, count = 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"]).logits.flatten(0, 1)[batch["target_positions"]]
        loss += float(cross_entropy(logits, batch["labels"], reduction="sum"))
        count += int((batch["labels"] != -100).sum())
    model.train()
    return loss / count


def run_stock(recipe: Recipe, data: PreparedData, given: argparse.Namespace, learning_rate: float) -> None:
    """Train stock BERT with one learning rate, and write its curve."""
    set_seed(0)
    size = len(data.tokenizer)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    model = BertForMaskedLM(BertConfig(vocab_size=size, **shape)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    source = batch_source(recipe, data, "train", 0).objective.data
    facts, generator = vocabulary_facts(data.tokenizer), np.random.default_rng(0)
    special, ordinary = torch.from_numpy(facts.is_special), torch.from_numpy(facts.ordinary_ids)
    clock = Clock(given.minutes)
    validation = validation_batches(recipe, data, torch.device("cpu"), bounds=False)
    curve = Curve(clock, partial(stock_loss, model, validation))
    step, order = 0, iter(())
    while clock.share < 1:
        rows = [next(order, None) for _ in range(BATCH)]
        if rows[-1] is None:  # a new epoch
            order = iter(generator.permutation(source.num_blocks(LENGTH)))
            continue
        ids = torch.from_numpy(source.blocks(np.array(rows), LENGTH))
        masked = (torch.rand(ids.shape) < MASK_RATE) & ~special[ids]
        ids, labels = stock_masks(ids, masked, facts.mask_id, ordinary[torch.randint(len(ordinary), ids.shape)])
        factor = min(clock.share / WARM_UP, (1 - clock.share) / (1 - WARM_UP))
        optimizer.param_groups[0]["lr"] = learning_rate * max(factor, 1e-3)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        curve.after_step(step)
    _keep(given, f"stock-{given.minutes:g}min-{learning_rate:g}", curve, step, model)


def run_ours(settings: RunSettings, recipe: Recipe, data: PreparedData, given: argparse.Namespace) -> None:
    """Train the recipe for as many steps as fit into the budget, and write its curve."""
    keep_freed_memory()
    accelerator = Accelerator()
    clock = Clock(given.minutes)  # starts here, because counting co-occurrences is part of our time
    for cached in data.directory.glob("embeddings-*.npy"):
        cached.unlink()
    build = partial(build_loop, recipe, data, accelerator, settings, seed=given.seed)
    trial = build(max_steps=10**6)
    clock.pause()
    seconds = trial.measure_step_seconds(timed=STEPS_TO_RATE, clock=time.process_time)
    clock.resume()
    max_steps = max(1, int((clock.budget - clock.seconds) / seconds))
    loop = build(max_steps=max_steps)
    validation = validation_batches(recipe, data, accelerator.device, bounds=loop.batches.bounds)
    curve = Curve(clock, lambda: validate(loop.model, validation, accelerator)["validation_loss"])

    def after_step(progress: Progress, figures: dict[str, float]) -> None:
        curve.after_step(progress.step)

    loop.run(Progress(), after_step)
    if not curve.is_full:
        clock.pause()
        curve.points.append((round(clock.spent, 2), max_steps, curve.measure()))
    _keep(given, f"ours-{given.minutes:g}min-{given.name}", curve, max_steps, loop.model)


def report(folder: Path) -> None:
    """Print the loss of stock, and the time that ours needed for the same loss."""
    runs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    if not runs:
        raise UserError(f"--output {folder}: has no runs; run `stock` and `ours` with the same --output first")
    print("| run | parameters | steps | last loss |\n| --- | ---: | ---: | ---: |")
    for name, run in runs.items():
        print(f"| {name} | {run['parameters']:,} | {run['steps']:,} | {run['curve'][-1][2]:.3f} |")
    stock = [run for name, run in runs.items() if name.startswith("stock")]
    print("\n| stock, best rate | its loss | ours | core-seconds | ratio |\n| --- | ---: | --- | ---: | ---: |")
    for minutes in sorted({run["minutes"] for run in stock}):
        best = min((run for run in stock if run["minutes"] == minutes), key=lambda run: run["curve"][-1][2])
        loss = best["curve"][-1][2]
        for name, run in runs.items():
            if name.startswith("ours"):
                seconds = next((point[0] for point in run["curve"] if point[2] <= loss), math.inf)
                print(f"| {minutes:g} min | {loss:.3f} | {name} | {seconds:,.1f} | {60 * minutes / seconds:,.0f} |")


def _keep(given: argparse.Namespace, name: str, curve: Curve, steps: int, model: torch.nn.Module) -> None:
    run = {
        "minutes": given.minutes,
        "threads": given.threads,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": curve.points,
    }
    given.output.mkdir(parents=True, exist_ok=True)
    atomic_write_json(given.output / f"{name}.json", run)
    print(f"{name}: loss {curve.points[-1][2]:.3f} after {curve.points[-1][0]:.0f} s, {steps:,} steps")


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.time_to_loss",
        description=__doc__.splitlines()[0],
        epilog="Other flags set fields of the recipe, as in `python -m pretrain`.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "what", choices=["stock", "ours", "report"], help="train stock, train ours, or compare the runs"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--corpus", nargs="+", default=["sample"], help="text, as in `python -m pretrain`")
    parser.add_argument("--minutes", type=float, default=15.0, help="core-minutes of training")
    parser.add_argument("--threads", type=int, default=1, help="number of CPU threads")
    rates = [5e-4, 1e-3, 2e-3]
    parser.add_argument("--learning-rates", type=float, nargs="+", default=rates, help="one run each, stock only")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights, order and masks, ours only")
    parser.add_argument("--name", default="recipe", help="name of the run in the report, ours only")
    given, recipe_flags = parser.parse_known_args()
    if given.minutes <= 0:
        raise UserError(f"--minutes {given.minutes:g}: must be positive")
    return given, recipe_flags


if __name__ == "__main__":
    sys.exit(run_command(main))
