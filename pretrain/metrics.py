"""Reports during a run: the progress bar, log lines, and metrics.jsonl."""

from __future__ import annotations

import json
import logging
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from .checkpoint import Progress

METRICS_PER_RUN = 1000  # maximum lines of metrics.jsonl, besides those with a validation
LOG_LINES_PER_RUN = 40  # where stderr is not a terminal

logger = logging.getLogger(__name__)


class Reporter:
    """Receives the figures of every step; in the main process it writes and shows them.

    A line of metrics.jsonl has the figures of one step (not means over steps, so that a resumed run writes the same
    lines) and the rate since the line before. `peak_share` converts tokens per second to a share of the machine's
    matrix rate; `track` also receives each line and its step, for a tracker such as TensorBoard.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_steps: int,
        max_tokens: int,
        progress: Progress,
        speaks: bool,
        peak_share: Callable[[float], float],
        track: Callable[[dict[str, float], int], None],
    ):
        self.path, self.max_steps, self.max_tokens, self.speaks = path, max_steps, max_tokens, speaks
        self.peak_share, self.track = peak_share, track
        self.last = (progress.tokens, progress.seconds)
        if speaks:
            _drop_lines_after(path, progress.step)
        options = {"unit": " tokens", "unit_scale": True, "dynamic_ncols": True}
        is_hidden = not (speaks and sys.stderr.isatty())
        self.bar = tqdm(total=max_tokens, initial=progress.tokens, disable=is_hidden, **options)
        self.validation = ""

    def after_step(self, progress: Progress, figures: dict[str, float]) -> None:
        """Report a step, if a line is due."""
        self.bar.update(progress.tokens - self.bar.n)
        validated = "validation_loss" in figures
        if not self.speaks or not (validated or self._due(progress.step, METRICS_PER_RUN)):
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
            stream.write(json.dumps(line) + "\n")
        self.track({name: value for name, value in line.items() if name != "step"}, progress.step)
        if validated:
            self.validation = f", validation {figures['validation_loss']:.3f}"
        if validated or self._due(progress.step, LOG_LINES_PER_RUN):
            self._show(line)

    def close(self) -> None:
        """Close the progress bar."""
        self.bar.close()

    def _due(self, step: int, lines_per_run: int) -> bool:
        return step % max(1, self.max_steps // lines_per_run) == 0 or step == self.max_steps

    def _show(self, line: dict) -> None:
        step = f"step {line['step']}/{self.max_steps}"
        if not self.bar.disable:
            self.bar.set_postfix_str(f"{step}, loss {line['loss']:.3f}{self.validation}")
            return
        rate = line["tokens"] / max(line["seconds"], 1e-9)
        left = round((self.max_tokens - line["tokens"]) / rate)
        validation = self.validation if "validation_loss" in line else ""
        text = f"{step}: loss {line['loss']:.3f}{validation}, {rate:,.0f} tokens/s"
        logger.info("%s, %d:%02d left", text, *divmod(left, 60))


def peak_memory() -> int:
    """Return the peak memory in bytes: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def read_metrics(path: Path) -> list[dict]:
    """Return the lines of metrics.jsonl, without a line that a crash truncated."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            logger.warning("%s: skipped a damaged line", path)
    return lines


def _drop_lines_after(path: Path, step: int) -> None:
    """Drop the lines that a resumed run will write again."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
