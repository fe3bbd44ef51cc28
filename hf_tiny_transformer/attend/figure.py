"""Draw attention as matplotlib figures, for notebooks, papers and `attend --png`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve

from .read import AttentionMap

ACCENT = "#b3400e"
HEAT = LinearSegmentedColormap.from_list("attention", ["#f7f8fa", "#74aed4", "#08306b"])  # the colors of the page
OVER = LinearSegmentedColormap.from_list("over", [(1.0, 0.47, 0.08, 0.0), (1.0, 0.47, 0.08, 0.85)])  # translucent
CELL, ROW = 0.3, 0.22  # inches: cells of the heat map, and words of the lines
LARGEST = 24.0  # inches; larger maps have smaller cells


def draw_attention(
    one: AttentionMap,
    layer: int = -1,
    head: int | None = None,
    word: str | int | None = None,
    parts: Sequence[str] = ("map", "lines"),
) -> Figure:
    """Draw a layer and head, as in `AttentionMap.head`.

    "map" is all weights, with queries on the left and keys at the top. "lines" is the attention of one query, as in
    `AttentionMap.query`: thicker for larger weights.
    """
    rows, columns = len(one.queries), len(one.keys)
    cell = min(CELL, LARGEST / max(rows, columns))
    sizes = {
        "map": (max(1.5, cell * columns) + 2.2, max(1.5, cell * rows) + 1.6),
        "lines": (4.2, ROW * max(rows, columns) + 0.6),
    }
    widths, heights = zip(*(sizes[part] for part in parts), strict=True)
    figure = Figure(figsize=(sum(widths), max(heights)), layout="constrained")
    query = one.query(word)
    for part, axes in zip(parts, figure.subplots(1, len(parts), width_ratios=widths, squeeze=False)[0], strict=True):
        if part == "map":
            _heat_map(axes, one, layer, head, cell, query if len(parts) > 1 else None)
        else:
            _lines(axes, one, layer, head, query)
    return figure


def draw_over_image(
    one: AttentionMap, image: Any, layer: int = -1, head: int | None = None, patch: int | None = None
) -> Figure:
    """Draw an image (PIL or pixels), and next to it the image under the weights of a patch, or of all (None)."""
    assert one.grid is not None
    weights = one.head(layer, head)
    weights = weights.mean(dim=0) if patch is None else weights[one.query(patch)]
    figure = Figure(figsize=(6.4, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows, columns = one.grid
    for axes in (left, right):
        axes.imshow(image, cmap="gray", extent=(0, columns, rows, 0), interpolation="nearest")
        axes.set_axis_off()
    shades = right.imshow(weights.reshape(one.grid), cmap=OVER, extent=(0, columns, rows, 0), vmin=0)
    if patch is not None:
        corner = (patch % columns, patch // columns)
        right.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#ff4d00", linewidth=2.5))
    figure.colorbar(shades, ax=right, shrink=0.8)
    figure.suptitle(_which(one, layer, head), fontsize=9)
    return figure


def _heat_map(axes: Axes, one: AttentionMap, layer: int, head: int | None, cell: float, word: int | None) -> None:
    shades = axes.imshow(one.head(layer, head), cmap=HEAT, vmin=0, aspect="equal")
    size = max(4.0, min(9.0, 72 * cell * 0.8))
    axes.set_xticks(range(len(one.keys)), [_plain(token) for token in one.keys], rotation=90, fontsize=size)
    axes.set_yticks(range(len(one.queries)), [_plain(token) for token in one.queries], fontsize=size)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel("query")
    axes.set_xlabel(f"key\n{_which(one, layer, head)}", fontsize=9)
    axes.figure.colorbar(shades, ax=axes, shrink=0.6, aspect=30, pad=0.02)
    if word is not None:
        axes.add_patch(Rectangle((-0.5, word - 0.5), len(one.keys), 1, fill=False, edgecolor=ACCENT, linewidth=1.5))


def _lines(axes: Axes, one: AttentionMap, layer: int, head: int | None, word: int) -> None:
    weights = one.head(layer, head)[word]
    most = float(weights.max().clamp(min=1e-9))
    for place, token in enumerate(one.queries):
        text = axes.text(0.3, place, _plain(token), ha="right", va="center", fontsize=9)
        if place == word:
            text.set(color="white", fontweight="bold", bbox={"facecolor": ACCENT, "edgecolor": "none", "pad": 1.5})
    for place, (token, weight) in enumerate(zip(one.keys, weights.tolist(), strict=True)):
        share = weight / most
        bold = "bold" if share > 0.5 else None
        axes.text(0.7, place, _plain(token), ha="left", va="center", fontsize=9, fontweight=bold)
        if share >= 0.01:
            curve = Curve([(0.32, word), (0.5, word), (0.5, place), (0.68, place)], [1, 4, 4, 4])
            style = {"alpha": 0.25 + 0.6 * share, "linewidth": 0.3 + 6 * share}
            axes.add_patch(PathPatch(curve, fill=False, edgecolor=ACCENT, **style))
    axes.set(xlim=(0, 1), ylim=(max(len(one.queries), len(one.keys)) - 0.4, -0.6))
    axes.set_axis_off()
    axes.set_title(f"{_plain(one.queries[word])!r} attends to; thickest: {most:.2f}", fontsize=9)


def _plain(token: str) -> str:
    """Escape dollars, which enclose formulas in matplotlib."""
    return token.replace("$", r"\$")


def _which(one: AttentionMap, layer: int, head: int | None) -> str:
    heads = "mean of heads" if head is None else f"head {head % one.weights.shape[1]}"
    return f"{one.kind}, layer {layer % len(one.weights)}, {heads}"
