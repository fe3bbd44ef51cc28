"""What a run says of itself: the progress bar, log lines, and metrics.jsonl."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from tqdm import tqdm

from .checkpoint import Progress

LINES_PER_RUN = 40  # of metrics and, where stderr is no terminal, of log

logger = logging.getLogger(__name__)


class Reporter:
    """Progress bar, log lines and metrics.jsonl. Only the main process has one that speaks."""

    def __init__(self, path: Path, *, max_steps: int, progress: Progress, speaks: bool):
        self.path, self.max_steps, self.speaks = path, max_steps, speaks
        self.every = max(1, max_steps // LINES_PER_RUN)
        self.last = (progress.tokens, progress.seconds)
        if speaks:
            _drop_lines_after(path, progress.step)
        show_bar = speaks and sys.stderr.isatty()
        self.bar = tqdm(total=max_steps, initial=progress.step, unit="step", disable=not show_bar, dynamic_ncols=True)

    def after_step(self, progress: Progress, figures: dict, validation_loss: float | None = None) -> None:
        """Takes a step's figures; writes a line at every fortieth of the run, at the end and with each validation."""
        self.bar.update(1)
        due = progress.step % self.every == 0 or progress.step == self.max_steps or validation_loss is not None
        if not (self.speaks and due):
            return
        tokens, seconds = progress.tokens - self.last[0], progress.seconds - self.last[1]
        self.last = (progress.tokens, progress.seconds)
        line = {
            "step": progress.step,
            "tokens": progress.tokens,
            **{name: float(value) for name, value in figures.items()},
            "tokens_per_second": round(tokens / max(seconds, 1e-9)),
            "seconds": round(progress.seconds, 2),
        }
        if validation_loss is not None:
            line["validation_loss"] = validation_loss
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self._show(line)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()

    def _show(self, line: dict) -> None:
        validation = f", validation {line['validation_loss']:.3f}" if "validation_loss" in line else ""
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {line['loss']:.3f}{validation}, {line['tokens_per_second']:,} tokens/s")
            return
        left = (self.max_steps - line["step"]) * line["seconds"] / max(line["step"], 1)
        logger.info(
            "step %d/%d: loss %.3f%s, %s tokens/s, %d:%02d left",
            line["step"],
            self.max_steps,
            line["loss"],
            validation,
            f"{line['tokens_per_second']:,}",
            *divmod(round(left), 60),
        )


def read_metrics(path: Path) -> list[dict]:
    """The lines of metrics.jsonl; a line that a crash cut short is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            logger.warning("%s: skipped a broken line", path)
    return lines


def _drop_lines_after(path: Path, step: int) -> None:
    """A resumed run writes again what came after its checkpoint."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    path.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
