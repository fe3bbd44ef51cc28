"""What surrounds a run: the libraries' chatter, their versions, the device, a place to write to."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import sys
import warnings
from pathlib import Path

import datasets
import torch
import transformers

from hf_tiny_transformer.runs import UserError

VERSIONS_OF = (
    *("torch", "transformers", "tokenizers", "accelerate", "datasets", "peft", "optuna"),
    *("numpy", "scipy", "scikit-learn"),
)


def quieten() -> None:
    """The libraries' notices and loading bars: our own lines say what matters, and errors are to be one line."""
    warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")  # of labels that some split lacks
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    datasets.logging.set_verbosity(logging.CRITICAL)  # it logs an error and raises it, too
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def require_writable_parent(flag: str, path: Path) -> None:
    """Raises:
    UserError: `path` can't be made; `flag` is what named it.
    """
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise UserError(f"{flag} {path}: {existing} is a file, not a directory; name another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: no permission to write in {existing}; name another place")


def versions() -> dict[str, str]:
    """Python's, and those of the libraries that a figure may depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in VERSIONS_OF}


def device() -> str:
    """What the model runs on, and in which precision."""
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return f"{torch.cuda.get_device_name()}, {'bf16' if bf16 else 'fp32'}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} thread(s), fp32"
