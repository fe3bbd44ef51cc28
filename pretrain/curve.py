"""loss.png: the metrics of a run as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # without a display
import matplotlib.pyplot as plt
import numpy as np

from .batches import VALIDATION_MASK_RATE
from .schedule import StagePlan

SMOOTHING_SHARE = 0.03  # of the run: the width of the running mean
BLUE, ORANGE, GREY, RULE = "#1f6fb2", "#c4570c", "#5c6576", "#dcdfe5"  # the pages' colours


def draw_curve(metrics: list[dict], path: Path, plans: Sequence[StagePlan] = ()) -> None:
    """Draw training loss (raw and smoothed), validation loss and learning rate over tokens; mark later stages."""
    tokens, loss, rates = (np.array([line[name] for line in metrics]) for name in ("tokens", "loss", "learning_rate"))
    millions = tokens / 1e6
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 5.4), sharex=True, height_ratios=(4, 1), constrained_layout=True
    )
    top.plot(millions, loss, color=BLUE, alpha=0.22, linewidth=0.7, label="training, each step")
    top.plot(millions, smooth(loss), color=BLUE, linewidth=2, label=f"training, smoothed{_masked(plans)}")
    validated = [(line["tokens"] / 1e6, line["validation_loss"]) for line in metrics if "validation_loss" in line]
    if validated:
        x, y = zip(*validated, strict=True)
        label = f"validation: {100 * VALIDATION_MASK_RATE:g} % masked" if _masked(plans) else "validation"
        top.plot(x, y, color=ORANGE, marker="o", markersize=5, linewidth=1.5, label=label, clip_on=False, zorder=3)
        place: dict[str, Any] = {"xytext": (4, -18), "textcoords": "offset points", "ha": "right", "color": ORANGE}
        top.annotate(f"{y[-1]:.3f}", (x[-1], y[-1]), fontweight="bold", **place)
    top.margins(y=0.1)  # room for the label of the last validation loss
    top.set_ylabel("loss, nats per target token")
    top.legend(frameon=False, loc="upper right")
    bottom.fill_between(millions, rates, color=GREY, alpha=0.15, linewidth=0)
    bottom.plot(millions, rates, color=GREY, linewidth=1.5)
    bottom.set(ylabel="learning rate", xlabel="tokens read, millions", xlim=(0, millions[-1]))
    bottom.set_ylim(bottom=0)
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    for plan in plans[1:]:
        start = np.interp(plan.first, [0, *(line["step"] for line in metrics)], [0, *millions])
        for axes in (top, bottom):
            axes.axvline(start, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
        name = f"{plan.stage.batch_size} x {plan.stage.block_size} tokens"
        of_stage: dict[str, Any] = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 8, "color": GREY}
        bottom.annotate(name, (start, 0), xycoords=("data", "axes fraction"), **of_stage)
    for axes in (top, bottom):
        axes.grid(color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _masked(plans: Sequence[StagePlan]) -> str:
    """Return what explains a training loss above validation: more masked tokens; "" if the rates are equal."""
    rates = dict.fromkeys(plan.stage.mask_rate for plan in plans)
    if not any(rate and rate != VALIDATION_MASK_RATE for rate in rates):
        return ""
    return f": {', then '.join(f'{100 * (rate or 0):g} %' for rate in rates)} masked; more masks, higher loss"


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
