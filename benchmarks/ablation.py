"""A recipe with one thing changed at a time: held-out loss after the same number of tokens.

    python -m benchmarks.ablation --tokens 2e6 --output runs/ablation
    python -m benchmarks.ablation --tokens 2e6 --output runs/ablation --recipe decoder

Steps, and so every figure but the seconds, depend on nothing but the recipe: other work on the machine changes no
loss. A row costs two to three core-minutes. Rows that are finished (a JSON file in the output folder, of the recipe as
it is now) are not run again; --only picks some by the beginning of their names.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel

from hf_tiny_transformer.common.environment import keep_freed_memory
from hf_tiny_transformer.common.errors import run_command
from hf_tiny_transformer.common.files import atomic_write_json, require_writable_parent
from pretrain.build import build_loop, validation_batches
from pretrain.checkpoint import Progress
from pretrain.cli import parse
from pretrain.prepare import prepare_data
from pretrain.recipe import Recipe
from pretrain.validation import validate

MEASURED_AT = (0.1, 0.25, 0.5)  # of the tokens, and at the end


def stage(
    share: float, rows: int, matrix_learning_rate: float, mask_rate: float | None = 0.2, length: int = 128
) -> dict:
    """One stage of a recipe."""
    found = {"share": share, "batch_size": rows, "block_size": length, "matrix_learning_rate": matrix_learning_rate}
    return found | ({} if mask_rate is None else {"mask_rate": mask_rate})


def stages(*of_recipe: dict) -> list[str]:
    """The flags for these stages."""
    return ["--stages", json.dumps(of_recipe)]


OTHER_SEED = "the recipe, another seed"
SAME = {"the recipe": [], OTHER_SEED: []}
BOLD, STEADY, CALM = 0.02, 0.01, 0.005  # rates for Muon


def _first_steps(mask_rate: float | None) -> dict[str, list[str]]:
    """What `sample` begins with, for the other recipes, and its rates for Muon."""
    begin = stage(0.2, 8, BOLD, mask_rate)
    bold, steady, calm = (stage(0.8, 32, rate, mask_rate) for rate in (BOLD, STEADY, CALM))
    return SAME | {
        "Muon 0.02 throughout": stages(stage(1.0, 32, BOLD, mask_rate)),
        "Muon 0.005 throughout": stages(stage(1.0, 32, CALM, mask_rate)),
        "Muon 0.02 for a fifth, then 0.01": stages(stage(0.2, 32, BOLD, mask_rate), steady),
        "Muon 0.02 for a fifth, then 0.005": stages(stage(0.2, 32, BOLD, mask_rate), calm),
        "8 rows at first": stages(begin, bold),
        "8 rows at first, then Muon 0.01": stages(begin, steady),
        "8 rows at first, then Muon 0.005": stages(begin, calm),
        "decay over the last fifth": ["--decay", "0.2"],
    }


CHANGES: dict[str, dict[str, list[str]]] = {
    "sample": SAME
    | {
        "AdamW on everything, 2e-3": ["--optimizer", "adamw"],
        "AdamW on everything, 4e-3": ["--optimizer", "adamw", "--learning_rate", "0.004"],
        "Muon 0.02 throughout": stages(stage(0.1, 8, BOLD), stage(0.9, 32, BOLD)),
        "Muon 0.005 throughout": stages(stage(0.1, 8, CALM), stage(0.9, 32, CALM)),
        "Muon 0.01 after a tenth": stages(stage(0.1, 8, BOLD), stage(0.9, 32, STEADY)),
        "Muon 0.01 after a tenth, weight decay 0.1": [
            *stages(stage(0.1, 8, BOLD), stage(0.9, 32, STEADY)),
            *("--weight_decay", "0.1"),
        ],
        "32 rows throughout": stages(stage(0.1, 32, BOLD), stage(0.9, 32, CALM)),
        "8 rows throughout": stages(stage(0.1, 8, BOLD), stage(0.9, 8, CALM)),
        "8 rows for a fifth": stages(stage(0.2, 8, BOLD), stage(0.8, 32, CALM)),
        "8 rows for a fifth, then 16, Muon 0.01, decay over the last fifth": [
            *stages(stage(0.2, 8, BOLD), stage(0.8, 16, STEADY)),
            *("--decay", "0.2"),
        ],
        "8 rows for a fifth, Muon 0.01, decay over the last fifth": [
            *stages(stage(0.2, 8, BOLD), stage(0.8, 32, STEADY)),
            *("--decay", "0.2"),
        ],
        "8 rows for a tenth, Muon 0.02 for three": stages(
            stage(0.1, 8, BOLD), stage(0.2, 32, BOLD), stage(0.7, 32, CALM)
        ),
        "64 rows in the second half": stages(stage(0.1, 8, BOLD), stage(0.45, 32, CALM), stage(0.45, 64, CALM)),
        "16 rows of 64 tokens at first": stages(stage(0.1, 16, BOLD, length=64), stage(0.9, 32, CALM)),
        "15 % hidden": stages(stage(0.1, 8, BOLD, 0.15), stage(0.9, 32, CALM, 0.15)),
        "30 % hidden": stages(stage(0.1, 8, BOLD, 0.3), stage(0.9, 32, CALM, 0.3)),
        "30 % hidden, then 20, then 15": stages(
            stage(0.1, 8, BOLD, 0.3), stage(0.45, 32, CALM, 0.2), stage(0.45, 32, CALM, 0.15)
        ),
        "embeddings at random": ["--embedding_init", "random"],
        "warm-up over a fiftieth": ["--warmup", "0.02"],
        "warm-up over a twentieth": ["--warmup", "0.05"],
        "decay over the last fifth": ["--decay", "0.2"],
        "decay from the beginning": ["--decay", "0.995"],
        "no decay": ["--decay", "0.0"],
    },
    "decoder": _first_steps(None),
    "seq2seq": _first_steps(0.15),
    "bert-nsp": _first_steps(0.15) | {"positions at random": ["--position_init", "random"]},
}


def main() -> None:
    """Runs what is not finished, then prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--recipe", choices=list(CHANGES), default="sample")
    parser.add_argument("--tokens", type=float, default=2e6)
    parser.add_argument("--only", nargs="+", default=[""], metavar="BEGINNING")
    arguments = parser.parse_args()
    changes = {
        name: flags for name, flags in CHANGES[arguments.recipe].items() if name.startswith(tuple(arguments.only))
    }
    if not changes:
        parser.error(f"--only: no change begins so; there are: {', '.join(CHANGES[arguments.recipe])}")
    if arguments.tokens < 1e4:
        parser.error(f"--tokens {arguments.tokens:g}: too few for a run; give at least 1e4")
    require_writable_parent("--output", arguments.output / "row.json")
    torch.set_num_threads(1)
    keep_freed_memory()
    shares = [f"{share:.0%} of the tokens" for share in MEASURED_AT]
    heads = ["change", "steps", *shares, "all", "last tenth averaged", "CPU s"]
    rows = [[name, *_figures(_run(name, flags, arguments))] for name, flags in changes.items()]
    for row in [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]:
        print(f"| {' | '.join(row)} |")


def _run(name: str, flags: list[str], arguments: argparse.Namespace) -> dict:
    slug = "-".join("".join(character if character.isalnum() else " " for character in name).split())
    path = arguments.output / f"{arguments.recipe}-{slug}-{arguments.tokens / 1e6:g}M.json"
    _, recipe = parse(["--output", "-", "--recipe", arguments.recipe, *flags])
    finished = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if finished.get("recipe") != dataclasses.asdict(recipe):  # also where the recipe has changed since
        run = train(recipe, seed=2 if name == OTHER_SEED else 1, tokens=arguments.tokens)
        arguments.output.mkdir(parents=True, exist_ok=True)
        atomic_write_json(path, {"change": name, "recipe": dataclasses.asdict(recipe), **run})
        print(f"{name}: {run['losses'][-1]:.3f}", file=sys.stderr, flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def train(recipe: Recipe, *, seed: int, tokens: float) -> dict:
    """Losses at MEASURED_AT, at the end, and with the mean of the last tenth's weights (Izmailov et al. 2018)."""
    accelerator = Accelerator()
    data = prepare_data(["sample"], "text", recipe, accelerator)
    max_steps = round(tokens / sum(stage.share * stage.batch_size * stage.block_size for stage in recipe.stages))
    loop = build_loop(recipe, data, accelerator, seed=seed, max_steps=max_steps)
    validation = validation_batches(recipe, data)
    mean, losses, measuring = AveragedModel(loop.model), [], 0.0

    def after_step(progress: Progress, figures: dict[str, float]) -> None:
        nonlocal measuring
        started = time.process_time()
        if progress.step > 0.9 * max_steps:
            mean.update_parameters(loop.model)
        due = MEASURED_AT[len(losses)] * tokens if len(losses) < len(MEASURED_AT) else math.inf
        if progress.tokens >= due or progress.step == max_steps:
            losses.append(validate(loop.model, validation, accelerator)["validation_loss"])
        measuring += time.process_time() - started

    before = time.process_time()
    loop.run(Progress(), after_step)
    seconds = time.process_time() - before - measuring
    averaged = validate(mean.module, validation, accelerator)["validation_loss"]
    return {"steps": max_steps, "losses": losses, "averaged": averaged, "seconds": round(seconds, 1)}


def _figures(run: dict) -> list[str]:
    return [
        f"{run['steps']:,}",
        *(f"{loss:.3f}" for loss in [*run["losses"], run["averaged"]]),
        f"{run['seconds']:.0f}",
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
