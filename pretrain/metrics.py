"""Reports during a run: log lines and metrics.jsonl."""

from __future__ import annotations

import json
import logging
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from hf_tiny_transformer.common.files import atomic_write_text

from .loop import Progress, TrainingLoop
from .schedule import plan_stages
from .speed import matrix_rate, step_flops

METRICS_FILE = Path("training") / "metrics.jsonl"
METRICS_PER_RUN = 1000  # maximum lines of metrics.jsonl, besides those with a validation
LOG_LINES_PER_RUN = 40

logger = logging.getLogger(__name__)


class Reporter:
    """Receives the figures of every step; the main process writes them to metrics.jsonl, the log and the tracker.

    A line of metrics.jsonl has the figures of one step (not means over steps, so that a resumed run writes the same
    lines) and the rate since the line before. A number that is not finite is null. `saved` has the lines up to
    `progress`, if it exists.
    """

    def __init__(self, output: Path, loop: TrainingLoop, progress: Progress, saved: Path):
        self.path, self.max_steps, self.accelerator = output / METRICS_FILE, loop.max_steps, loop.accelerator
        plans = plan_stages(loop.recipe, loop.max_steps)
        self.max_tokens = sum(p.stage.batch_size * p.stage.block_size * (p.last - p.first) for p in plans)
        self.peak_share = peak_share(loop)
        self.last = (progress.tokens, progress.seconds)
        show_bar = self.accelerator.is_main_process and sys.stderr.isatty()
        self.bar = tqdm(
            total=self.max_tokens,
            initial=progress.tokens,
            unit=" tokens",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not show_bar,
        )
        if self.accelerator.is_main_process:  # a resumed run writes the later lines again
            atomic_write_text(self.path, saved.read_text(encoding="utf-8") if saved.is_file() else "")

    def after_step(self, progress: Progress, figures: dict[str, float]) -> None:
        """Move the bar, and report the step if a line is due."""
        self.bar.update(progress.tokens - self.bar.n)
        validated = "validation_loss" in figures
        if not self.accelerator.is_main_process or not (validated or self._due(progress.step, METRICS_PER_RUN)):
            return
        tokens, seconds = progress.tokens - self.last[0], progress.seconds - self.last[1]
        self.last = (progress.tokens, progress.seconds)
        rate = tokens / max(seconds, 1e-9)
        line = {
            "step": progress.step,
            "tokens": progress.tokens,
            **figures,
            "tokens_per_second": round(rate),
            "peak_share": round(self.peak_share(rate), 4),
            "seconds": round(progress.seconds, 2),
            "memory_gib": round(peak_memory() / 2**30, 3),
        }
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({n: v if math.isfinite(v) else None for n, v in line.items()}) + "\n")
        self.accelerator.log({name: value for name, value in line.items() if name != "step"}, progress.step)
        if validated or self._due(progress.step, LOG_LINES_PER_RUN):
            rate = progress.tokens / max(progress.seconds, 1e-9)
            minutes, seconds = divmod(round((self.max_tokens - progress.tokens) / rate), 60)
            losses = f"loss {line['loss']:.3f}"
            losses += f", validation {figures['validation_loss']:.3f}" if validated else ""
            step = f"step {progress.step}/{self.max_steps}: {losses}"
            self.bar.set_postfix_str(step)
            if self.bar.disable:
                logger.info("%s, %s tokens/s, %d:%02d left", step, f"{rate:,.0f}", minutes, seconds)
        if progress.step == self.max_steps:
            self.bar.close()

    def _due(self, step: int, lines_per_run: int) -> bool:
        return step % max(1, self.max_steps // lines_per_run) == 0 or step == self.max_steps


def peak_share(loop: TrainingLoop) -> Callable[[float], float]:
    """Return a function from tokens per second to the share of the machine's matrix rate, for the last stage."""
    accelerator, stage = loop.accelerator, loop.recipe.stages[-1]
    tokens = stage.batch_size * stage.block_size
    predicted = round(tokens * (stage.mask_rate or 1.0))
    model = accelerator.unwrap_model(loop.model)
    flops = step_flops(model, rows=stage.batch_size, length=stage.block_size, predicted=predicted)
    possible = matrix_rate(accelerator.device, accelerator.mixed_precision) * accelerator.num_processes
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()  # the run's own peak, without the matrices just multiplied
    return lambda rate: rate * flops / tokens / possible


def peak_memory() -> int:
    """Return the peak memory in bytes: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_metrics(path: Path) -> list[dict]:
    """Return the lines of metrics.jsonl, without a line that a crash truncated; null becomes NaN."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append({name: math.nan if value is None else value for name, value in json.loads(text).items()})
        except (ValueError, AttributeError):
            logger.warning("%s: skipped a damaged line", path)
    return lines
