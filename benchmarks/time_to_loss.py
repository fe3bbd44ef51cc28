"""Core-seconds to the same loss: our recipe beside stock BERT, on one text, one tokenizer, the same held-out masks.

    python -m benchmarks.time_to_loss stock --minutes 15 --learning-rates 5e-4 1e-3 2e-3 --output runs/time-to-loss
    python -m benchmarks.time_to_loss stock --minutes 60 --learning-rates 1e-3 --output runs/time-to-loss
    python -m benchmarks.time_to_loss ours --minutes 15 --output runs/time-to-loss
    python -m benchmarks.time_to_loss report --output runs/time-to-loss

Stock is BertForMaskedLM 2x128 as `run_mlm.py` trains it: packed rows that documents share without a border, logits of
every position, dropout 0.1, AdamW, 15 % hidden, linear decay to 0 over its own time. Its best learning rate counts.
Ours is a recipe's run by `pretrain`'s own code, with no more parameters than stock. Both are measured on the same
hidden tokens of the same held-out blocks; measuring does not count as training time, all else does. Time is CPU time:
core-minutes, which other work on the machine does not lengthen. Stock's schedule follows that clock, so that a slower
machine gives fewer steps and not a longer run.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM

from hf_tiny_transformer.common.environment import keep_freed_memory
from hf_tiny_transformer.common.errors import UserError, run_command
from hf_tiny_transformer.common.files import atomic_write_json, require_writable_parent
from pretrain.build import batch_source, build_loop, validation_batches
from pretrain.checkpoint import Progress
from pretrain.cli import parse
from pretrain.loss import loss_share, predict
from pretrain.prepare import PreparedData, prepare_data
from pretrain.recipe import Recipe
from pretrain.tokenizer import vocabulary_facts

BATCH, LENGTH, MASK_RATE = 32, 128, 0.15
WARM_UP = 0.05  # share of the run
MEASUREMENTS = 60  # a run; denser at its beginning
STEPS_TO_RATE = 20


def main() -> None:
    """Trains one side, or reports on what was trained."""
    arguments, recipe_flags = _arguments()
    if arguments.what == "report":
        report(arguments.output)
        return
    require_writable_parent("--output", arguments.output / "run.json")
    torch.set_num_threads(arguments.threads)
    _, recipe = parse(["--output", "-", *recipe_flags])
    recipe.validate()
    data = prepare_data(arguments.corpus, "text", recipe, Accelerator())
    if arguments.what == "ours":
        run_ours(recipe, data, arguments)
        return
    for learning_rate in arguments.learning_rates:
        run_stock(recipe, data, arguments, learning_rate)


class Clock:
    """Core-seconds of training (this process's CPU time, all its threads): stands still while a loss is measured."""

    def __init__(self, minutes: float):
        self.budget, self.spent = 60 * minutes, 0.0
        self.started: float | None = time.process_time()

    @property
    def seconds(self) -> float:
        """Spent so far."""
        return self.spent + (0.0 if self.started is None else time.process_time() - self.started)

    @property
    def share(self) -> float:
        """Of the budget, at most 1."""
        return min(1.0, self.seconds / self.budget)

    def pause(self) -> None:
        """Until `go_on`."""
        self.spent, self.started = self.seconds, None

    def go_on(self) -> None:
        """Counts again."""
        self.started = time.process_time()


class Curve:
    """Losses on the held-out blocks over training seconds, measured at set shares of the budget."""

    def __init__(self, clock: Clock, model: torch.nn.Module, batches: list[dict[str, torch.Tensor]], stock: bool):
        self.clock, self.model, self.batches, self.stock = clock, model, batches, stock
        self.due = [((i + 1) / MEASUREMENTS) ** 2 for i in range(MEASUREMENTS)]
        self.points: list[tuple[float, int, float]] = []

    @property
    def is_full(self) -> bool:
        """All is measured."""
        return len(self.points) == MEASUREMENTS

    def after_step(self, step: int) -> None:
        """Measures where a measurement is due."""
        if self.is_full or self.clock.share < self.due[len(self.points)]:
            return
        self.clock.pause()
        loss = held_out_loss(self.model, self.batches, stock=self.stock)
        while not self.is_full and self.clock.share >= self.due[len(self.points)]:
            self.points.append((round(self.clock.spent, 2), step, loss))
        print(f"{self.clock.spent:7.1f} s, step {step}: held-out loss {loss:.3f}", file=sys.stderr, flush=True)
        self.clock.go_on()


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]], *, stock: bool) -> float:
    """Nats per hidden token. Stock takes no target positions; it reads the same rows, documents without borders."""
    was_training = model.training
    model.eval()
    total = torch.stack([(batch["labels"] != -100).sum() for batch in batches]).sum()
    totals, loss = torch.stack((total, total)).float(), 0.0
    for batch in batches:
        if stock:
            logits = model(batch["input_ids"], batch["target_positions"])
            loss += float(cross_entropy(logits, batch["labels"], reduction="sum") / totals[0])
        else:
            loss += float(loss_share(predict(model, batch, totals), batch, totals))
    model.train(was_training)
    return loss


class StockOnTargets(torch.nn.Module):
    """Stock BERT, measured on our batches: logits of the target positions."""

    def __init__(self, model: BertForMaskedLM):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, target_positions: torch.Tensor) -> torch.Tensor:
        """(N, vocabulary)."""
        return self.model(input_ids=input_ids).logits.flatten(0, 1)[target_positions]


def run_stock(recipe: Recipe, data: PreparedData, arguments: argparse.Namespace, learning_rate: float) -> None:
    """One run of stock BERT at one learning rate."""
    set_seed(0)
    size = len(data.tokenizer)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    model = BertForMaskedLM(BertConfig(vocab_size=size, **shape)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    source = batch_source(recipe, data, data.train_tokens, "training", 0).objective.data
    facts, generator = vocabulary_facts(data.tokenizer), np.random.default_rng(0)
    special, ordinary = torch.from_numpy(facts.is_special), torch.from_numpy(facts.ordinary_ids)
    clock = Clock(arguments.minutes)
    curve = Curve(clock, StockOnTargets(model), validation_batches(recipe, data), stock=True)
    step, order = 0, iter(())
    while clock.share < 1:
        rows = [next(order, None) for _ in range(BATCH)]
        if rows[-1] is None:  # a new epoch
            order = iter(generator.permutation(source.num_blocks(LENGTH)))
            continue
        ids = torch.from_numpy(source.blocks(np.array(rows), LENGTH))
        hidden = (torch.rand(ids.shape) < MASK_RATE) & ~special[ids]
        labels, draw = torch.where(hidden, ids, -100), torch.rand(ids.shape)
        ids = torch.where(hidden & (draw < 0.8), facts.mask_id, ids)
        random_ids = ordinary[torch.randint(len(ordinary), ids.shape)]
        ids = torch.where(hidden & (draw > 0.9), random_ids, ids)
        factor = min(clock.share / WARM_UP, (1 - clock.share) / (1 - WARM_UP))
        optimizer.param_groups[0]["lr"] = learning_rate * max(factor, 1e-3)
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        curve.after_step(step)
    _keep(arguments, f"stock-{arguments.minutes:g}min-{learning_rate:g}", curve, step, model)


def run_ours(recipe: Recipe, data: PreparedData, arguments: argparse.Namespace) -> None:
    """One run of the recipe, its steps measured out as `--minutes` does."""
    keep_freed_memory()
    accelerator = Accelerator()
    clock = Clock(arguments.minutes)  # counts from here: counting co-occurrences is part of our time
    for kept in data.directory.glob("embeddings-*.npy"):
        kept.unlink()
    trial = build_loop(recipe, data, accelerator, seed=arguments.seed, max_steps=10**6)
    clock.pause()
    seconds = trial.measure_step_seconds(timed=STEPS_TO_RATE, clock=time.process_time)
    clock.go_on()
    max_steps = max(1, int((clock.budget - clock.seconds) / seconds))
    loop = build_loop(recipe, data, accelerator, seed=arguments.seed, max_steps=max_steps)
    validation = validation_batches(recipe, data)
    curve = Curve(clock, loop.model, validation, stock=False)

    def after_step(progress: Progress, figures: dict[str, float]) -> None:
        curve.after_step(progress.step)

    loop.run(Progress(), after_step)
    if not curve.is_full:
        clock.pause()
        curve.points.append((round(clock.spent, 2), max_steps, held_out_loss(loop.model, validation, stock=False)))
    _keep(arguments, f"ours-{arguments.minutes:g}min-{arguments.name}", curve, max_steps, loop.model)


def report(folder: Path) -> None:
    """What stock reached, and how long ours took to the same loss."""
    runs = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    if not runs:
        raise UserError(f"--output {folder}: holds no run; train `stock` and `ours` into it first")
    print("| run | parameters | steps | last loss |\n| --- | ---: | ---: | ---: |")
    for name, run in runs.items():
        print(f"| {name} | {run['parameters']:,} | {run['steps']:,} | {run['curve'][-1][2]:.3f} |")
    stock = [run for name, run in runs.items() if name.startswith("stock")]
    print("\n| stock, best of its rates | its loss | ours | core-seconds | ratio |\n| --- | ---: | --- | ---: | ---: |")
    for minutes in sorted({run["minutes"] for run in stock}):
        best = min((run for run in stock if run["minutes"] == minutes), key=lambda run: run["curve"][-1][2])
        loss = best["curve"][-1][2]
        for name, run in runs.items():
            if name.startswith("ours"):
                seconds = next((point[0] for point in run["curve"] if point[2] <= loss), math.inf)
                print(f"| {minutes:g} min | {loss:.3f} | {name} | {seconds:,.1f} | {60 * minutes / seconds:,.0f} |")


def _keep(arguments: argparse.Namespace, name: str, curve: Curve, steps: int, model: torch.nn.Module) -> None:
    run = {
        "minutes": arguments.minutes,
        "threads": arguments.threads,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": curve.points,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    atomic_write_json(arguments.output / f"{name}.json", run)
    print(f"{name}: loss {curve.points[-1][2]:.3f} after {curve.points[-1][0]:.0f} s, {steps:,} steps")


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.time_to_loss",
        description=__doc__.splitlines()[0],
        epilog="Flags it does not know go to the recipe, as in `python -m pretrain`.",
    )
    parser.add_argument("what", choices=["stock", "ours", "report"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--corpus", nargs="+", default=["sample"])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[5e-4, 1e-3, 2e-3], help="stock only")
    parser.add_argument("--seed", type=int, default=1, help="ours only: of weights, order and masks")
    parser.add_argument("--name", default="recipe", help="of this run of ours in the report")
    arguments, recipe_flags = parser.parse_known_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes {arguments.minutes:g}: must be more than 0")
    return arguments, recipe_flags


if __name__ == "__main__":
    sys.exit(run_command(main))
