"""The command `report`: pretraining runs side by side on one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hf_tiny_transformer.common.arguments import CommandParser, build, program
from hf_tiny_transformer.common.errors import UserError, one_line, plural
from hf_tiny_transformer.common.files import atomic_write_text
from hf_tiny_transformer.common.pages import render_page, require_file_name

from .curve import smooth
from .metrics import METRICS_FILE, read_metrics
from .publish import SUMMARY_FILE
from .settings import RECIPE_FILE, RUN_FILE

TEMPLATE = Path(__file__).parent / "report.html"


@dataclass
class ReportSettings:
    """Settings of `report`.

    Args:
        runs: Directories of pretraining runs.
        output: HTML file to write; an existing one is replaced.
    """

    runs: list[Path]
    output: Path


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = CommandParser(program("report"), "Compare pretraining runs on one self-contained HTML page.")
    parser.add_settings(ReportSettings, positional=["runs"])
    given = build(ReportSettings, parser.parse(argv))
    require_file_name("--output", given.output, ".html")
    atomic_write_text(given.output, report(given.runs))
    print(f"{given.output}: {plural(len(given.runs), 'run')}")


def report(directories: list[Path]) -> str:
    """Return the page for some runs."""
    runs = [read_run(directory) for directory in directories]
    settings = [run.pop("settings") for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows = [[name, *(one.get(name, "") for one in settings)] for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    data = {"runs": runs, "differing": differing, "alike": [row for row in rows if row not in differing]}
    return render_page(TEMPLATE, "Pretraining: " + ", ".join(run["name"] for run in runs), data)


def read_run(directory: Path) -> dict[str, Any]:
    """Return what the page shows of a run: its curves, figures and settings."""
    lines = read_metrics(directory / METRICS_FILE)
    if not lines:
        raise UserError(f"{directory / METRICS_FILE}: no metrics; name the --output of a pretraining run")
    try:
        recipe = yaml.safe_load((directory / RECIPE_FILE).read_text(encoding="utf-8"))
        recorded = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
        summary_file = directory / SUMMARY_FILE
        summary = json.loads(summary_file.read_text(encoding="utf-8")) if summary_file.is_file() else {}
        loss = [line["loss"] for line in lines]
        columns = {name: [line[name] for line in lines] for name in ("tokens", "seconds", "learning_rate")}
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"{directory / 'training'}: cannot be read ({one_line(error, 200)})") from error
    validated = [i for i, line in enumerate(lines) if "validation_loss" in line]
    return {
        "name": str(directory),
        **{name: _short(column) for name, column in columns.items()},
        "loss": _short(loss),
        "smoothed": _short(smooth(np.array(loss)).tolist()),
        "validated": validated,
        "validation": _short([lines[i]["validation_loss"] for i in validated]),
        "figures": _figures(lines, recorded, summary, validated),
        "settings": flatten({**recipe, "run": recorded}),
    }


def flatten(value: Any, name: str = "") -> dict[str, str]:
    """Return nested settings as dotted names with text."""
    if isinstance(value, dict) and value:
        parts = (flatten(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items())
        return {key: text for part in parts for key, text in part.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):  # the stages
        return flatten({str(i): inner for i, inner in enumerate(value)}, name)
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def _figures(lines: list[dict], recorded: dict, summary: dict, validated: list[int]) -> list[list[str]]:
    """Return the rows of the page's first table."""
    last = lines[-1]
    best = min((lines[i]["validation_loss"] for i in validated), default=None)
    return [
        ["validation loss, last", f"{lines[validated[-1]]['validation_loss']:.3f}" if validated else "-"],
        ["validation loss, lowest", "-" if best is None else f"{best:.3f}"],
        ["steps", f"{last['step']:,} of {recorded['max_steps']:,}"],
        ["tokens", f"{last['tokens']:,}"],
        ["minutes of training", f"{last['seconds'] / 60:.1f}"],
        ["tokens per second", f"{last['tokens'] / max(last['seconds'], 1e-9):,.0f}"],
        ["parameters", f"{summary['parameters']:,}" if "parameters" in summary else "not finished"],
    ]


def _short(values: list[float]) -> list[float | None]:
    """Round to five digits, more than a screen shows; a value that is not finite becomes a gap."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
