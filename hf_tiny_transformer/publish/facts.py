"""Facts that every card states: license, names without local folders, tokenizer, scores and energy."""

from __future__ import annotations

import re
import subprocess
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..common.errors import UserError

WATTS_PER_CPU_THREAD = 10.0  # assumed: a server processor's rated power over its cores, with memory, rounded up
_LICENSE = re.compile(r"[a-z0-9]+([.+-][a-z0-9]+)*")


def check_license(name: str | None, flag: str = "--license") -> None:
    """Raise a UserError if a license is not spelled as the Hub spells licenses."""
    if name is not None and _LICENSE.fullmatch(name) is None:
        expected = "the Hub's identifier of a license, such as apache-2.0, mit or cc-by-4.0"
        raise UserError(f"{flag} {name}: expected {expected} (https://huggingface.co/docs/hub/repositories-licenses)")


def public_name(text: str) -> str:
    """Return the last part of a path that leads through local folders, also in `--flag=PATH`; other text unchanged."""
    flag, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    for path in (PurePosixPath(value), PureWindowsPath(value)):
        if path.is_absolute() or value.startswith("~") or ".." in path.parts:
            return flag + equals + (path.name or "root")
    return text


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a tokenizer's algorithm, size, and whether it lowercases."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(tokenizer).__name__ if backend is None else type(backend.model).__name__
    lowercase = getattr(getattr(backend, "normalizer", None), "lowercase", None)
    case = {True: ", lowercased", False: ", cased", None: ""}[lowercase]
    return f"{kind}, {len(tokenizer):,} tokens{case}"


def percent(score: float) -> str:
    """Return a score between 0 and 1 in percent, with two decimals."""
    return f"{100 * score:.2f}"


def spread(mean: float, std: float | None) -> str:
    """Return mean and, if there is one, standard deviation, in percent."""
    return percent(mean) + ("" if std is None else f" ± {percent(std)}")


def estimate_energy(seconds: float, processes: int = 1) -> dict[str, Any]:
    """Estimate the energy of a run as time x watts; nothing is measured.

    Returns:
        `kwh` (None if the power of the GPU is unknown) and `method`, how it was estimated.
    """
    is_gpu = torch.cuda.is_available()
    watts = _gpu_power_limit() if is_gpu else WATTS_PER_CPU_THREAD
    if watts is None:
        return {"kwh": None, "method": "not estimated: the power limit of the GPU cannot be read"}
    count = processes if is_gpu else processes * torch.get_num_threads()
    method = f"time x {count} CPU thread(s) x an assumed {watts:g} W"
    if is_gpu:
        method = f"time x {count} GPU(s) x {watts:g} W, the power limit: an upper bound for the GPU"
    return {"kwh": seconds * count * watts / 3.6e6, "method": method}


def time_and_energy(seconds: float, energy: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of a card's Training table with the time and the estimated energy of a run."""
    amount = "" if energy["kwh"] is None else f"{1000 * energy['kwh']:.3g} Wh: "
    return [("training time", f"{seconds / 60:.1f} minutes"), ("energy (estimate)", f"{amount}{energy['method']}")]


def _gpu_power_limit() -> float | None:
    query = ["nvidia-smi", "--id=0", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout)
    except (OSError, ValueError, subprocess.SubprocessError):  # no such program, or "[N/A]"
        return None
