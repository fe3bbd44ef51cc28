"""loss.png: what a run's metrics look like."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is opened
import matplotlib.pyplot as plt
import numpy as np

SMOOTHING_SHARE = 0.02  # of the run: the length of the running mean


def draw_curve(metrics: list[dict], path: Path) -> None:
    """Training loss (raw and smoothed), validation loss and learning rate over tokens, as a PNG."""
    if not metrics:
        return
    tokens = np.array([line["tokens"] for line in metrics]) / 1e6
    loss = np.array([line["loss"] for line in metrics])
    validated = [(line["tokens"] / 1e6, line["validation_loss"]) for line in metrics if "validation_loss" in line]

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 5), sharex=True, height_ratios=(4, 1), constrained_layout=True
    )
    top.plot(tokens, loss, color="tab:blue", alpha=0.25, linewidth=0.8, label="training loss")
    top.plot(tokens, _smooth(loss), color="tab:blue", linewidth=2, label="training loss, smoothed")
    if validated:
        x, y = zip(*validated, strict=True)
        top.plot(x, y, color="tab:orange", marker="o", markersize=4, linewidth=1.5, label="validation loss")
        top.annotate(f"{y[-1]:.2f}", (x[-1], y[-1]), textcoords="offset points", xytext=(0, -16), ha="center")
        top.margins(y=0.1)
    top.set_ylabel("loss, nats per token asked for")
    top.grid(alpha=0.3)
    top.legend(frameon=False)
    bottom.plot(tokens, [line["learning_rate"] for line in metrics], color="tab:gray")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("tokens read, millions")
    bottom.grid(alpha=0.3)
    bottom.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean whose first values are not pulled towards zero."""
    keep = 1 - 1 / max(1.0, SMOOTHING_SHARE * len(values))
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean = keep * mean + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        smoothed.append(mean / weight)
    return np.array(smoothed)
