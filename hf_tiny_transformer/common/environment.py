"""The machine and the libraries of a run: versions, device, log levels, and one setting of the C library."""

from __future__ import annotations

import ctypes
import importlib.metadata
import logging
import os
import platform
import warnings
from collections.abc import Sequence
from typing import TypeVar

import torch
from transformers.utils import logging as transformers_logging

NOISY = ("httpx", "accelerate", "filelock", "huggingface_hub", "datasets")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h


def quieten_libraries() -> None:
    """Silence the notices and loading bars of the libraries, so that an error is one line."""
    warnings.filterwarnings("ignore", category=UserWarning, module="sklearn")  # labels that are absent from a split
    warnings.filterwarnings("ignore", category=FutureWarning, message="`broadcast_buffers`")  # in torch 2.13
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory; training on CPU is a third faster with it.

    By default each large tensor is returned to the kernel, which hands it out again page by page, zeroed.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # on macOS, Windows and musl
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of the installed ones among `packages`."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def use_gpu(model: ModuleT) -> ModuleT:
    """Move a model to the GPU, if there is one, and return it; the type of transformers' own `to` is lost."""
    module: torch.nn.Module = model
    module.to("cuda" if torch.cuda.is_available() else "cpu")
    return model


def supports_bf16() -> bool:
    """Return whether there is a GPU that computes in bf16 itself (a T4 or V100 only emulates it)."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def use_deterministic_kernels() -> None:
    """Make the same run give the same bits on a GPU; call it before the first CUDA kernel."""
    import torch._inductor.config as inductor  # takes a second

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    inductor.deterministic = True  # no choice of kernels by timing them
    torch.use_deterministic_algorithms(True)


def device_name(precision: str = "") -> str:
    """Return the device and precision of training (default: fine-tuning's), for reports."""
    precision = precision or ("bf16" if supports_bf16() else "fp32")
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {precision}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} thread(s), {precision}"
