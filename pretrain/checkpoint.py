"""Checkpoints as transactions: each is a model directory that opens as it lies, plus what a resume needs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import PreTrainedTokenizerFast

from hf_tiny_transformer.runs import UserError, atomic_directory, atomic_write_json

from . import zero

STATE_FILE, OPTIMIZER_FILE = "training_state.json", "training_state.pt"
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
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
    accelerator: Accelerator,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Writes checkpoints/step-N beside its place and renames it there when it is whole.

    Every process calls it, for a sharded model has to be gathered; the main one writes. What is written does not depend
    on how the run was spread: weights and optimizer state are whole, and go by the parameters' names.
    """
    model = accelerator.unwrap_model(model)
    weights = zero.whole_weights(model) if zero.is_used(accelerator) else get_model_state_dict(model, options=WHOLE)
    states = [_optimizer_state(accelerator, model, optimizer) for optimizer in optimizers]
    if not accelerator.is_main_process:
        return
    with atomic_directory(checkpoint_path(run, progress.step)) as staging:
        tied = model.all_tied_weights_keys  # gathered, they would be copies, and the file would hold the matrix twice
        weights = {name: tensor for name, tensor in weights.items() if name not in tied}
        model.save_pretrained(staging, state_dict=weights)
        tokenizer.save_pretrained(staging)
        torch.save({"optimizers": states}, staging / OPTIMIZER_FILE)
        atomic_write_json(staging / STATE_FILE, asdict(progress))


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


def load_checkpoint(
    directory: Path, accelerator: Accelerator, model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> Progress:
    """Puts a checkpoint's weights and optimizer state in place, on however many processes.

    Raises:
        UserError: a file of it is damaged or does not fit the model.
    """
    model = accelerator.unwrap_model(model)
    try:
        weights = load_file(directory / "model.safetensors")
        for target, source in model.all_tied_weights_keys.items():
            weights.setdefault(target, weights[source])
        _place_weights(accelerator, model, weights)
        states = torch.load(directory / OPTIMIZER_FILE, weights_only=True, map_location="cpu")["optimizers"]
        for optimizer, state in zip(optimizers, states, strict=True):
            if state["state"]:
                _place_optimizer_state(accelerator, model, _unwrapped(optimizer), state)
        return read_progress(directory)
    except Exception as error:  # safetensors, pickle, zip and json each raise their own kind for a damaged file
        raise UserError(
            f"{directory}: damaged or of another model ({type(error).__name__}: {error}); "
            "remove this checkpoint to resume from the one before it"
        ) from None


def read_progress(directory: Path) -> Progress:
    """How far a checkpoint's run was."""
    return Progress(**json.loads((directory / STATE_FILE).read_text(encoding="utf-8")))


def _place_weights(accelerator: Accelerator, model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    if zero.is_used(accelerator):
        zero.place_weights(model, weights)
    else:
        set_model_state_dict(model, weights, options=WHOLE)


def _place_optimizer_state(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict
) -> None:
    if zero.is_used(accelerator):
        zero.place_optimizer_state(model, optimizer, state)
    else:
        set_optimizer_state_dict(model, optimizer, optim_state_dict=state, options=WHOLE)


def _optimizer_state(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """By parameter names. Before the first step there is none, and asking torch for it would take a step."""
    if not optimizer.state:
        return {"state": {}}
    if zero.is_used(accelerator):
        return zero.whole_optimizer_state(model, _unwrapped(optimizer))
    return get_optimizer_state_dict(model, _unwrapped(optimizer), options=WHOLE)


def _unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Accelerate's wrapper off."""
    return getattr(optimizer, "optimizer", optimizer)
