"""The table of scores, and the markdown report around it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from hf_tiny_transformer.card_figures import spread, table_line
from hf_tiny_transformer.cards import escape

from .train import SeedResult


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (ddof 1; None for a single figure) of a score between 0 and 1."""

    mean: float
    std: float | None

    @classmethod
    def of(cls, scores: Sequence[float]) -> Spread:
        return cls(statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else None)

    def __str__(self) -> str:
        return spread(vars(self))


Scores = dict[str, dict[str, float]]  # split -> metric -> score


@dataclass(frozen=True)
class Row:
    """One line of the table. `reported` is split -> metric -> score. `results` is empty for what does not depend on a
    seed; `choice` says what was chosen."""

    name: str
    validation: Spread
    reported: dict[str, dict[str, Spread]]
    seconds: float
    results: list[SeedResult] = field(default_factory=list)
    choice: str = ""

    @classmethod
    def single(cls, name: str, validation: float, reported: Scores, seconds: float, choice: str = "") -> Row:
        return cls(name, Spread(validation, None), _spreads([reported]), round(seconds, 2), choice=choice)

    @classmethod
    def of_seeds(cls, name: str, results: list[SeedResult], seconds: float, choice: str = "") -> Row:
        validation = Spread.of([result.validation for result in results])
        reported = _spreads([result.reported for result in results])
        return cls(name, validation, reported, round(seconds, 2), results, choice)

    @property
    def runs(self) -> str:
        return str(len(self.results)) if self.results else "-"


def _spreads(of_runs: Sequence[Scores]) -> dict[str, dict[str, Spread]]:
    return {
        split: {metric: Spread.of([run[split][metric] for run in of_runs]) for metric in metrics}
        for split, metrics in of_runs[0].items()
    }


def table_cells(rows: Sequence[Row], main: str) -> list[list[str]]:
    """Header and lines; `main` is the metric that the choices on validation were made by."""
    columns = [f"{split} {metric}, %" for split, metrics in rows[0].reported.items() for metric in metrics]
    return [["model", "seeds", f"validation {main}, %", *columns, "seconds"], *map(_cells, rows)]


def text_table(cells: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the name to the left, figures to the right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    lines = [cells[0], ["---", *["---:"] * (len(cells[0]) - 1)], *cells[1:]]
    return "\n".join(map(table_line, lines))


def markdown_report(results: dict, rows: Sequence[Row]) -> str:
    """`results` is what results.json holds."""
    counts = results["data"]["counts"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"# {escape(results['task'])}: {escape(results['model'])}",
        markdown_table(table_cells(rows, results["metric"])),
        "Mean ± standard deviation over seeds. Every choice (epoch, seed, C, the control's learning rate) was made on "
        f"validation; the {' and '.join(results['scores'])} split was read once per run.",
    ]
    if any(row.choice for row in rows):
        parts.append("\n".join(f"- {escape(row.name)}: {escape(row.choice)}" for row in rows if row.choice))
    if results["search"]:
        parts += ["## Search", _search_part(results["search"])]
    parts += ["## Settings", _table("setting", "value", results["settings"])]
    parts += ["## Data", _table("split", "rows", counts), f"sha256 of texts and labels: `{results['data']['sha256']}`"]
    parts += ["## Time", _table("step", "seconds", results["timings"])]
    if results["pretraining"]:
        parts += _pretraining_parts(results["pretraining"])
    parts += ["## Where", f"{results['device']}; {versions}"]
    parts += ["## Again", f"```\n{escape(results['command'], 'block')}\n```"]
    return "\n\n".join(parts) + "\n"


def _search_part(search: dict) -> str:
    names = list(search["chosen"])
    cells = [["trial", *names, "validation, %"]]
    for number, trial in enumerate(search["trials"], start=1):
        cells.append([str(number), *(_plain(trial[name]) for name in names), f"{100 * trial['validation']:.2f}"])
    return markdown_table(cells)


def _pretraining_parts(summary: dict) -> list[str]:
    """From the pretraining's own summary: its single figures, its times, its examples."""
    figures = {name: value for name, value in summary.items() if isinstance(value, str | int | float)}
    parts = ["## Pretraining"]
    if figures:
        parts.append(_table("figure", "value", figures))
    if isinstance(summary.get("timings"), dict):
        parts.append(_table("step", "seconds", summary["timings"]))
    if isinstance(summary.get("examples"), list):
        parts.append("\n".join(f"- `{escape(example, 'code')}`" for example in summary["examples"]))
    return parts


def _cells(row: Row) -> list[str]:
    figures = [str(spread) for metrics in row.reported.values() for spread in metrics.values()]
    return [row.name, row.runs, str(row.validation), *figures, f"{row.seconds:.1f}"]


def _table(left: str, right: str, values: dict) -> str:
    lines = [f"| {left} | {right} |", "| --- | ---: |"]
    return "\n".join(lines + [f"| {escape(name)} | {escape(_plain(value))} |" for name, value in values.items()])


def _plain(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1000 else str(value)
