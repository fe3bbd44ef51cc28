"""The table of scores, and the markdown report around it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

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
        return f"{100 * self.mean:.2f}" + ("" if self.std is None else f" ± {100 * self.std:.2f}")


@dataclass(frozen=True)
class Row:
    """One line of the table. `results` is empty for what does not depend on a seed; `choice` says what was chosen."""

    name: str
    validation: Spread
    reported: Spread
    seconds: float
    results: list[SeedResult] = field(default_factory=list)
    choice: str = ""

    @classmethod
    def single(cls, name: str, validation: float, reported: float, seconds: float, choice: str = "") -> Row:
        return cls(name, Spread(validation, None), Spread(reported, None), round(seconds, 2), choice=choice)

    @classmethod
    def of_seeds(cls, name: str, results: list[SeedResult], seconds: float, choice: str = "") -> Row:
        validation = Spread.of([result.validation for result in results])
        reported = Spread.of([result.reported for result in results])
        return cls(name, validation, reported, round(seconds, 2), results, choice)

    @property
    def runs(self) -> str:
        return str(len(self.results)) if self.results else "-"


def header(metric: str, reported_name: str) -> list[str]:
    return ["model", "seeds", f"validation {metric}, %", f"{reported_name} {metric}, %", "seconds"]


def text_table(rows: Sequence[Row], metric: str, reported_name: str) -> str:
    """Aligned columns: the name to the left, figures to the right."""
    cells = [header(metric, reported_name), *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in cells
    )


def markdown_table(rows: Sequence[Row], metric: str, reported_name: str) -> str:
    lines = [header(metric, reported_name), ["---", *["---:"] * 4], *map(_cells, rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown_report(results: dict, rows: Sequence[Row]) -> str:
    """`results` is what results.json holds."""
    counts = results["data"]["counts"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"# {results['task']}: {results['model']}",
        markdown_table(rows, results["metric"], results["reported_split"]),
        "Mean ± standard deviation over seeds. Every choice (epoch, seed, C, the control's learning rate) was made on "
        f"validation; the {results['reported_split']} split was read once per run.",
    ]
    if any(row.choice for row in rows):
        parts.append("\n".join(f"- {row.name}: {row.choice}" for row in rows if row.choice))
    parts += ["## Settings", _table("setting", "value", results["settings"])]
    parts += ["## Data", _table("split", "rows", counts), f"sha256 of texts and labels: `{results['data']['sha256']}`"]
    parts += ["## Time", _table("step", "seconds", results["timings"])]
    if results["pretraining"]:
        parts += _pretraining_parts(results["pretraining"])
    parts += ["## Where", f"{results['device']}; {versions}"]
    parts += ["## Again", f"```\n{results['command']}\n```"]
    return "\n\n".join(parts) + "\n"


def _pretraining_parts(summary: dict) -> list[str]:
    """From the pretraining's own summary: its single figures, its times, its examples."""
    figures = {name: value for name, value in summary.items() if isinstance(value, str | int | float)}
    parts = ["## Pretraining"]
    if figures:
        parts.append(_table("figure", "value", figures))
    if isinstance(summary.get("timings"), dict):
        parts.append(_table("step", "seconds", summary["timings"]))
    if isinstance(summary.get("examples"), list):
        parts.append("\n".join(f"- {example}" for example in summary["examples"]))
    return parts


def _cells(row: Row) -> list[str]:
    return [row.name, row.runs, str(row.validation), str(row.reported), f"{row.seconds:.1f}"]


def _table(left: str, right: str, values: dict) -> str:
    lines = [f"| {left} | {right} |", "| --- | ---: |"]
    return "\n".join(lines + [f"| {name} | {_plain(value)} |" for name, value in values.items()])


def _plain(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1000 else str(value)
