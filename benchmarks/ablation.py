"""Held-out loss of a recipe with one setting changed at a time, after the same number of tokens.

    python -m benchmarks.ablation --tokens 2e6 --output runs/ablation
    python -m benchmarks.ablation --tokens 2e6 --output runs/ablation --recipe decoder

The number of steps depends only on the recipe, so other work on the machine changes the seconds but no loss. A row
takes two to three core-minutes. Finished rows (a JSON file in the output directory, of the same recipe) are skipped.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel

from hf_tiny_transformer.common.environment import keep_freed_memory
from hf_tiny_transformer.common.errors import UserError, run_command
from hf_tiny_transformer.common.files import atomic_write_json, require_writable
from hf_tiny_transformer.publish.card import markdown_table
from pretrain.batches import validation_batches
from pretrain.checkpoint import Progress
from pretrain.cli import parse
from pretrain.data.prepare import prepare_data
from pretrain.recipe import Recipe
from pretrain.run import build_loop
from pretrain.settings import RunSettings
from pretrain.validation import validate

from .command import parse as parse_settings

MEASURED_AT = (0.1, 0.25, 0.5)  # shares of the tokens; also measured at the end


def stage(
    share: float, rows: int, matrix_learning_rate: float, mask_rate: float | None = 0.2, length: int = 128
) -> dict:
    """Return one stage of a recipe."""
    found = {"share": share, "batch_size": rows, "block_size": length, "matrix_learning_rate": matrix_learning_rate}
    return found | ({} if mask_rate is None else {"mask_rate": mask_rate})


def stages(*of_recipe: dict, flags: str = "") -> list[str]:
    """Return the flags for these stages, and further ones."""
    return ["--stages", json.dumps(of_recipe), *flags.split()]


OTHER_SEED = "the recipe, another seed"
SAME = {"the recipe": [], OTHER_SEED: []}
HIGH, MIDDLE, LOW = 0.02, 0.01, 0.005  # learning rates of Muon


def _first_steps(mask_rate: float | None) -> dict[str, list[str]]:
    """Return changes that apply the first stage of `sample` and its Muon rates to the other recipes."""
    first = stage(0.2, 8, HIGH, mask_rate)
    high, middle, low = (stage(0.8, 32, rate, mask_rate) for rate in (HIGH, MIDDLE, LOW))
    return SAME | {
        "Muon 0.02 throughout": stages(stage(1.0, 32, HIGH, mask_rate)),
        "Muon 0.005 throughout": stages(stage(1.0, 32, LOW, mask_rate)),
        "Muon 0.02 for a fifth, then 0.01": stages(stage(0.2, 32, HIGH, mask_rate), middle),
        "Muon 0.02 for a fifth, then 0.005": stages(stage(0.2, 32, HIGH, mask_rate), low),
        "8 rows at first": stages(first, high),
        "8 rows at first, then Muon 0.01": stages(first, middle),
        "8 rows at first, then Muon 0.005": stages(first, low),
        "decay over the last fifth": ["--decay", "0.2"],
    }


CHANGES: dict[str, dict[str, list[str]]] = {
    "sample": SAME
    | {
        "AdamW on everything, 2e-3": ["--optimizer", "adamw"],
        "AdamW on everything, 4e-3": ["--optimizer", "adamw", "--learning_rate", "0.004"],
        "Muon 0.02 throughout": stages(stage(0.1, 8, HIGH), stage(0.9, 32, HIGH)),
        "Muon 0.005 throughout": stages(stage(0.1, 8, LOW), stage(0.9, 32, LOW)),
        "Muon 0.01 after a tenth": stages(stage(0.1, 8, HIGH), stage(0.9, 32, MIDDLE)),
        "Muon 0.01 after a tenth, weight decay 0.1": stages(
            stage(0.1, 8, HIGH), stage(0.9, 32, MIDDLE), flags="--weight_decay=0.1"
        ),
        "32 rows throughout": stages(stage(0.1, 32, HIGH), stage(0.9, 32, LOW)),
        "8 rows throughout": stages(stage(0.1, 8, HIGH), stage(0.9, 8, LOW)),
        "8 rows for a fifth": stages(stage(0.2, 8, HIGH), stage(0.8, 32, LOW)),
        "8 rows for a fifth, then 16, Muon 0.01, decay over the last fifth": stages(
            stage(0.2, 8, HIGH), stage(0.8, 16, MIDDLE), flags="--decay=0.2"
        ),
        "8 rows for a fifth, Muon 0.01, decay over the last fifth": stages(
            stage(0.2, 8, HIGH), stage(0.8, 32, MIDDLE), flags="--decay=0.2"
        ),
        "8 rows for a tenth, Muon 0.02 for three": stages(
            stage(0.1, 8, HIGH), stage(0.2, 32, HIGH), stage(0.7, 32, LOW)
        ),
        "64 rows in the second half": stages(stage(0.1, 8, HIGH), stage(0.45, 32, LOW), stage(0.45, 64, LOW)),
        "16 rows of 64 tokens at first": stages(stage(0.1, 16, HIGH, length=64), stage(0.9, 32, LOW)),
        "15 % masked": stages(stage(0.1, 8, HIGH, 0.15), stage(0.9, 32, LOW, 0.15)),
        "30 % masked": stages(stage(0.1, 8, HIGH, 0.3), stage(0.9, 32, LOW, 0.3)),
        "30 % masked, then 20, then 15": stages(
            stage(0.1, 8, HIGH, 0.3), stage(0.45, 32, LOW, 0.2), stage(0.45, 32, LOW, 0.15)
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


@dataclass(frozen=True)
class AblationSettings:
    """What to run.

    Args:
        output: Directory of the finished rows.
        recipe: Recipe to change.
        tokens: Number of training tokens per row.
        only: Run only the changes whose names start with one of these. Default: all.
    """

    output: Path
    recipe: Literal["sample", "decoder", "seq2seq", "bert-nsp"] = "sample"
    tokens: float = 2e6
    only: list[str] | None = None


def main() -> None:
    """Run the unfinished rows, then print the table."""
    settings = parse_settings("ablation", __doc__, AblationSettings)
    all_changes, only = CHANGES[settings.recipe], tuple(settings.only or [""])
    changes = {name: flags for name, flags in all_changes.items() if name.startswith(only)}
    if not changes:
        raise UserError(f"--only: no such change; expected the start of: {', '.join(all_changes)}")
    if settings.tokens < 1e4:
        raise UserError(f"--tokens {settings.tokens:g}: must be at least 1e4")
    require_writable("--output", settings.output / "row.json")
    torch.set_num_threads(1)
    keep_freed_memory()
    shares = [f"{share:.0%} of the tokens" for share in MEASURED_AT]
    header = ("change", "steps", *shares, "all", "last tenth averaged", "CPU s")
    rows = [(name, *_figures(_run(name, flags, settings))) for name, flags in changes.items()]
    print(markdown_table(header, rows))


def _run(name: str, flags: list[str], settings: AblationSettings) -> dict[str, Any]:
    """Return the figures of a row, from its file if it is finished."""
    slug = "-".join("".join(character if character.isalnum() else " " for character in name).split())
    path = settings.output / f"{settings.recipe}-{slug}-{settings.tokens / 1e6:g}M.json"
    run_settings, recipe = parse(["--output", "-", "--recipe", settings.recipe, *flags])
    finished = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if finished.get("recipe") == asdict(recipe):
        return finished
    run = train(run_settings, recipe, seed=2 if name == OTHER_SEED else 1, tokens=settings.tokens)
    settings.output.mkdir(parents=True, exist_ok=True)
    atomic_write_json(path, {"change": name, "recipe": asdict(recipe), **run})
    print(f"{name}: {run['losses'][-1]:.3f}", file=sys.stderr, flush=True)
    return run


def train(settings: RunSettings, recipe: Recipe, *, seed: int, tokens: float) -> dict[str, Any]:
    """Return the losses at MEASURED_AT, at the end, and with the mean of the last tenth's weights (Izmailov 2018)."""
    accelerator = Accelerator()
    data = prepare_data(["sample"], "text", recipe)
    max_steps = round(tokens / sum(stage.share * stage.batch_size * stage.block_size for stage in recipe.stages))
    loop = build_loop(recipe, data, accelerator, settings, seed=seed, max_steps=max_steps)
    validation = validation_batches(recipe, data, accelerator.device, bounds=loop.batches.bounds)
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


def _figures(run: dict[str, Any]) -> list[str]:
    losses = [f"{loss:.3f}" for loss in (*run["losses"], run["averaged"])]
    return [f"{run['steps']:,}", *losses, f"{run['seconds']:.0f}"]


if __name__ == "__main__":
    sys.exit(run_command(main))
