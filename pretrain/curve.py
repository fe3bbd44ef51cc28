"""loss.png: the metrics of a run as a figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # without a display
import matplotlib.pyplot as plt
import numpy as np

SMOOTHING_SHARE = 0.03  # of the run: the width of the running mean
BLUE, ORANGE, GREY, RULE = "#1f6fb2", "#c4570c", "#5c6576", "#dcdfe5"  # the pages' colours


def draw_curve(metrics: list[dict], path: Path) -> None:
    """Draw training loss (raw and smoothed), validation loss and learning rate over tokens."""
    tokens, loss, rates = (np.array([line[name] for line in metrics]) for name in ("tokens", "loss", "learning_rate"))
    millions = tokens / 1e6
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 5.4), sharex=True, height_ratios=(4, 1), constrained_layout=True
    )
    top.plot(millions, loss, color=BLUE, alpha=0.22, linewidth=0.7, label="training, each step")
    top.plot(millions, smooth(loss), color=BLUE, linewidth=2, label="training, smoothed")
    validated = [(line["tokens"] / 1e6, line["validation_loss"]) for line in metrics if "validation_loss" in line]
    if validated:
        x, y = zip(*validated, strict=True)
        top.plot(
            x, y, color=ORANGE, marker="o", markersize=5, linewidth=1.5, label="validation", clip_on=False, zorder=3
        )
        place = {"xytext": (4, -18), "textcoords": "offset points", "ha": "right", "color": ORANGE}
        top.annotate(f"{y[-1]:.3f}", (x[-1], y[-1]), fontweight="bold", **place)
    top.margins(y=0.1)  # room for the label of the last validation loss
    top.set_ylabel("loss, nats per target token")
    top.legend(frameon=False, loc="upper right")
    bottom.fill_between(millions, rates, color=GREY, alpha=0.15, linewidth=0)
    bottom.plot(millions, rates, color=GREY, linewidth=1.5)
    bottom.set(ylabel="learning rate", xlabel="tokens read, millions", xlim=(0, millions[-1]))
    bottom.set_ylim(bottom=0)
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for axes in (top, bottom):
        axes.grid(color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def smooth(values: np.ndarray) -> np.ndarray:
    """Return the centred running mean, which does not lag; near both ends its window shrinks. NaNs are left out."""
    half = round(SMOOTHING_SHARE * len(values) / 2)
    smoothed = []
    for place in range(len(values)):
        reach = min(half, place)
        near = values[place - reach : place + reach + 1]
        near = near[np.isfinite(near)]
        smoothed.append(near.mean() if len(near) else np.nan)
    return np.array(smoothed)
