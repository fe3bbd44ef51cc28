"""loss.png: the metrics of a run as a figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # without a display
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from .recipe import Recipe
from .schedule import plan_stages

SMOOTHING_SHARE = 0.03  # of the run: the width of the running mean
LABEL_WIDTH = 0.19  # of the axis: the widest name of a phase
BLUE, ORANGE, GREY, RULE = "#1f6fb2", "#c4570c", "#5c6576", "#dcdfe5"  # the pages' colours


def draw_curve(metrics: list[dict], path: Path, recipe: Recipe, max_steps: int) -> None:
    """Draw training loss (raw and smoothed), validation loss and learning rate over tokens, with the phases marked."""
    if not metrics:
        return
    tokens = np.array([line["tokens"] for line in metrics]) / 1e6
    steps = np.array([line["step"] for line in metrics])
    loss = np.array([line["loss"] for line in metrics])
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 5.4), sharex=True, height_ratios=(4, 1), constrained_layout=True
    )
    top.plot(tokens, loss, color=BLUE, alpha=0.22, linewidth=0.7, label="training, each step")
    top.plot(tokens, smooth(loss), color=BLUE, linewidth=2, label="training, smoothed")
    validated = [(line["tokens"] / 1e6, line["validation_loss"]) for line in metrics if "validation_loss" in line]
    if validated:
        _draw_validation(top, validated)
    top.margins(y=0.1)  # room for the label of the last validation loss
    top.set_ylabel("loss, nats per target token")
    top.legend(frameon=False, loc="upper right")
    rates = [line["learning_rate"] for line in metrics]
    bottom.fill_between(tokens, rates, color=GREY, alpha=0.15, linewidth=0)
    bottom.plot(tokens, rates, color=GREY, linewidth=1.5)
    bottom.set(ylabel="learning rate", xlabel="tokens read, millions", xlim=(0, tokens[-1]))
    bottom.set_ylim(0, 1.25 * max([*rates, 1e-12]))
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for axes in (top, bottom):
        axes.grid(color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    starts = [
        (np.interp(step, np.concatenate(([0], steps)), np.concatenate(([0], tokens))), names)
        for step, names in sorted(phases(recipe, max_steps).items())
    ]
    _mark_phases(top, bottom, starts)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _mark_phases(top: Axes, bottom: Axes, starts: list[tuple[float, list[str]]]) -> None:
    """Draw a line where each phase starts, with its names; names that would overlap are moved down."""
    before, line = -np.inf, 0
    for where, names in starts:
        for axes in (top, bottom):
            axes.axvline(where, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
        line = line if where - before < LABEL_WIDTH * bottom.get_xlim()[1] else 0
        place = {"xytext": (3, -2 - 14 * line), "textcoords": "offset points", "va": "top", "fontsize": 8}
        bottom.annotate("\n".join(names), (where, 1), xycoords=("data", "axes fraction"), color=GREY, **place)
        before, line = where, line + len(names)


def phases(recipe: Recipe, max_steps: int) -> dict[int, list[str]]:
    """Return the names of the phases by their first step: later stages, the end of the warm-up, the decay."""
    begins: dict[int, list[str]] = {}
    for plan in plan_stages(recipe, max_steps)[1:]:
        stage = plan.stage
        rate = f", {100 * stage.mask_rate:g} % masked" if stage.mask_rate else ""
        begins.setdefault(plan.first, []).append(f"{stage.batch_size} x {stage.block_size} tokens{rate}")
    if recipe.warmup > 0:
        begins.setdefault(round(recipe.warmup * max_steps), []).append("warm")
    if recipe.decay > 0:
        begins.setdefault(round((1 - recipe.decay) * max_steps), []).append("decay")
    return begins


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


def _draw_validation(axes: Axes, validated: list[tuple[float, float]]) -> None:
    x, y = zip(*validated, strict=True)
    axes.plot(x, y, color=ORANGE, marker="o", markersize=5, linewidth=1.5, label="validation", clip_on=False, zorder=3)
    place = {"xytext": (4, -18), "textcoords": "offset points", "ha": "right", "color": ORANGE, "fontweight": "bold"}
    axes.annotate(f"{y[-1]:.3f}", (x[-1], y[-1]), **place)
