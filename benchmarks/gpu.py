"""All measurements that need a GPU, in one call; prints Markdown for LOG.md.

    python -m benchmarks.gpu --output runs/gpu            (about 25 minutes on one H100)
    python -m benchmarks.gpu --output runs/gpu --small    (a rehearsal, a few minutes on a CPU)

The steps run one after another, each in processes of its own: tokens per second compared with stock BERT (sdpa,
compiled, and flash attention if it is installed), Hugging Face's own tests, a pretraining run and its fine-tuning, and
sharded training.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from hf_tiny_transformer.common.errors import RunError, run_command

from .command import parse

BASE = ["--shape", "12x768", "--length", "512", "--batch", "64", "--rounds", "3"]
SMALL = ["--shape", "2x128", "--length", "64", "--batch", "4", "--rounds", "1", "--seconds", "1"]


@dataclass(frozen=True)
class GpuSettings:
    """What to run.

    Args:
        output: Directory of the runs.
        small: Use tiny shapes, to check that every step runs.
        minutes: Minutes of the pretraining run.
    """

    output: Path
    small: bool = False
    minutes: float = 5.0


def main() -> None:
    """Run all steps, also after one that fails, and exit with 1 if one failed."""
    settings = parse("gpu", __doc__, GpuSettings)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{device}, torch {torch.__version__}\n", flush=True)
    failed = [title for title, command in steps(settings) if not run(title, command)]
    if failed:
        raise RunError(f"failed: {', '.join(failed)}")


def steps(settings: GpuSettings) -> list[tuple[str, list[str]]]:
    """Return a title and the arguments of `python -m` for each step."""
    shape = SMALL if settings.small else BASE
    variants = {"sdpa": [], "compiled": ["--compile"]}
    if find_spec("flash_attn") is not None and torch.cuda.is_available():
        variants["flash attention"] = ["--attention", "flash_attention_2"]
        variants["flash attention, compiled"] = [*variants["flash attention"], "--compile"]
    run_folder = settings.output / "pretrained"
    length = ["--max-steps", "10"] if settings.small else ["--minutes", f"{settings.minutes:g}"]
    epochs = ["--epochs", "1", "--seeds", "1"] if settings.small else ["--epochs", "4", "--seeds", "3"]
    finetune = ["finetune", "--model", str(run_folder), "--task", "sample-sentiment", "--learning_rate", "5e-4"]
    finetune += [*epochs, "--token_masking", "0.15", "--output", str(settings.output / "finetuned")]
    conformance = ["tests.conformance", "--families", "encoder"] if settings.small else ["tests.conformance"]
    return [
        *((f"throughput, {name}", ["benchmarks.throughput", *shape, *flags]) for name, flags in variants.items()),
        ("Hugging Face's own tests", conformance),
        ("pretraining", ["pretrain", "--corpus", "sample", *length, "--output", str(run_folder)]),
        ("fine-tuning", finetune),
        *_sharded(settings.output),
    ]


def _sharded(output: Path) -> list[tuple[str, list[str]]]:
    """Return twenty steps of each way to shard, in bf16 over NCCL; one GPU is enough to run every call of them."""
    if not torch.cuda.is_available():
        return []  # Accelerate shards on GPUs only; the tests simulate it on a CPU
    ways = {"FSDP2": "fsdp2", "ZeRO-2 by FSDP2": "zero2"}
    launch = ["accelerate.commands.launch", "--num_processes", "1", "--config_file"]
    train = ["-m", "pretrain", "--corpus", "sample", "--optimizer", "adamw", "--max-steps", "20", "--output"]
    return [(way, [*launch, f"pretrain/launch/{name}.yaml", *train, str(output / name)]) for way, name in ways.items()]


def run(title: str, command: list[str]) -> bool:
    """Run one step, and return whether it succeeded."""
    print(f"\n## {title}\n\n`python -m {' '.join(command)}`\n", flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], cwd=Path(__file__).parent.parent)
    print(f"\n{time.perf_counter() - start:.0f} s, exit status {done.returncode}", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(run_command(main))
