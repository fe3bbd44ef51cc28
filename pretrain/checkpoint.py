"""Checkpoints as transactions: each is a model directory that opens as it lies, plus what a resume needs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_tiny_transformer.runs import UserError, atomic_directory, atomic_write_json

STATE_FILE, OPTIMIZER_FILE = "training_state.json", "training_state.pt"
_NAME = re.compile(r"step-(\d+)")


@dataclass
class Progress:
    """How far a run is. `step` counts finished steps, `skipped` those of them that were passed over; `seconds` is
    training time over all parts of the run."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    best_step: int = 0
    best_validation_loss: float | None = None


def save_checkpoint(
    run: Path,
    progress: Progress,
    model: PreTrainedModel,
    optimizers: list[torch.optim.Optimizer],
    tokenizer: PreTrainedTokenizerFast,
) -> Path:
    """Writes checkpoints/step-N beside its place and renames it there when it is whole."""
    directory = checkpoint_path(run, progress.step)
    with atomic_directory(directory) as staging:
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        state = {"optimizers": [o.state_dict() for o in optimizers]}
        torch.save(state, staging / OPTIMIZER_FILE)
        atomic_write_json(staging / STATE_FILE, asdict(progress))
    return directory


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step}"


def checkpoint_steps(run: Path) -> list[int]:
    """The steps that have one, rising. What a crash left half-written never carries its name."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(int(m[1]) for p in found if (m := _NAME.fullmatch(p.name)) and (p / STATE_FILE).is_file())


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the highest step, or None."""
    steps = checkpoint_steps(run)
    return checkpoint_path(run, steps[-1]) if steps else None


def load_checkpoint(directory: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> Progress:
    """Puts a checkpoint's weights and optimizer state in place.

    Raises:
        UserError: a file of it is damaged or does not fit the model.
    """
    try:
        load_model(model, directory / "model.safetensors")
        state = torch.load(directory / OPTIMIZER_FILE, weights_only=True, map_location="cpu")
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return Progress(**json.loads((directory / STATE_FILE).read_text(encoding="utf-8")))
    except Exception as error:  # safetensors, pickle, zip and json each raise their own kind for a damaged file
        raise UserError(
            f"{directory}: damaged or of another model ({type(error).__name__}: {error}); "
            "remove this checkpoint to resume from the one before it"
        ) from None
