"""Everything of ours that only a GPU can show, in one call; Markdown on stdout, which belongs into LOG.md.

    python -m benchmarks.gpu --output runs/gpu            (about 25 minutes on one H100)
    python -m benchmarks.gpu --output runs/gpu --small    (a rehearsal, a few minutes on a CPU)

One after another, each in processes of its own: tokens a second beside stock BERT (sdpa, flash attention where it is
installed, compiled), Hugging Face's own tests, and a real pretraining run with a fine-tuning behind it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch

BASE = ["--shape", "12x768", "--length", "512", "--batch", "64", "--rounds", "3"]
SMALL = ["--shape", "2x128", "--length", "64", "--batch", "4", "--rounds", "1", "--seconds", "1"]


def main() -> None:
    """Goes on after a step that fails, and exits 1 at the end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="where the pretraining run goes")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to see that every step runs")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the pretraining run")
    arguments = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, no GPU"
    print(f"{device}, torch {torch.__version__}\n", flush=True)
    failed = [title for title, command in steps(arguments) if not run(title, command)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def steps(arguments: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """(title, arguments of python -m)."""
    shape = SMALL if arguments.small else BASE
    variants = {"sdpa": [], "compiled": ["--compile"]}
    if find_spec("flash_attn") is not None and torch.cuda.is_available():
        variants["flash attention"] = ["--attention", "flash_attention_2"]
        variants["flash attention, compiled"] = [*variants["flash attention"], "--compile"]
    run_folder = arguments.output / "pretrained"
    length = ["--max-steps", "10"] if arguments.small else ["--minutes", f"{arguments.minutes:g}"]
    epochs = ["--epochs", "1", "--seeds", "1"] if arguments.small else ["--epochs", "4", "--seeds", "3"]
    finetune = [
        "finetune",
        "--model",
        str(run_folder),
        "--task",
        "sample-sentiment",
        "--learning_rate",
        "5e-4",
        *epochs,
    ]
    finetune += ["--token_masking", "0.15", "--output", str(arguments.output / "finetuned")]
    conformance = ["tests.conformance", "--families", "encoder"] if arguments.small else ["tests.conformance"]
    return [
        *((f"tokens a second, {name}", ["benchmarks.throughput", *shape, *flags]) for name, flags in variants.items()),
        ("Hugging Face's own tests", conformance),
        ("pretraining", ["pretrain", "--corpus", "sample", *length, "--output", str(run_folder)]),
        ("fine-tuning", finetune),
        *_sharded(arguments.output),
    ]


def _sharded(output: Path) -> list[tuple[str, list[str]]]:
    """Twenty steps of each way to shard, in bf16 over NCCL: on one GPU already every call of theirs is made."""
    if not torch.cuda.is_available():
        return []  # Accelerate shards on GPUs only; the tests make it do so on a CPU
    ways = {"FSDP2": "fsdp2", "ZeRO-2 by FSDP2": "zero2"}
    launch = ["accelerate.commands.launch", "--num_processes", "1", "--config_file"]
    train = ["-m", "pretrain", "--corpus", "sample", "--optimizer", "adamw", "--max-steps", "20", "--output"]
    return [(way, [*launch, f"pretrain/launch/{name}.yaml", *train, str(output / name)]) for way, name in ways.items()]


def run(title: str, command: list[str]) -> bool:
    """Runs one step, its output as it comes; whether it succeeded."""
    print(f"\n## {title}\n\n`python -m {' '.join(command)}`\n", flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], cwd=Path(__file__).parent.parent)
    print(f"\n{time.perf_counter() - start:.0f} s, exit status {done.returncode}", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
