"""`python -m pretrain report DIR [DIR ...] --output PAGE.html`: runs side by side on one page that holds everything."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml

from hf_tiny_transformer.page import render_page
from hf_tiny_transformer.runs import UserError, atomic_write_text

from .curve import smooth
from .metrics import read_metrics
from .record import RECIPE_FILE, RUN_FILE

TEMPLATE = Path(__file__).parent / "report.html"
METRICS_FILE = Path("training") / "metrics.jsonl"
SUMMARY_FILE = Path("training") / "summary.json"  # a run that is not finished has none


class Parser(argparse.ArgumentParser):
    """Complains in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises `UserError`."""
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: list[str]) -> None:
    """The sub-command; `argv` without its name.

    Raises:
        UserError: a directory that holds no run, one named twice, or a place that is no HTML file.
    """
    parser = Parser(prog="python -m pretrain report", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="DIR", help="what python -m pretrain was told as --output"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PAGE.html", help="replaced if it is there")
    given = parser.parse_args(argv)
    if given.output.suffix.lower() != ".html" or given.output.is_dir():
        raise UserError(f"--output {given.output}: name a file that ends in .html")
    atomic_write_text(given.output, report(given.runs))
    print(f"{given.output}: {len(given.runs)} run{'s' * (len(given.runs) > 1)}")


def report(directories: list[Path]) -> str:
    """The page as text.

    Raises:
        UserError: as `main`.
    """
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise UserError(f"report: a directory is named twice: {', '.join(map(str, directories))}")
    runs = [read_run(directory) for directory in directories]
    settings = [run.pop("settings") for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows = [[name, *(one.get(name, "") for one in settings)] for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    data = {"runs": runs, "differing": differing, "alike": [row for row in rows if row not in differing]}
    return render_page(TEMPLATE, "Pretraining: " + ", ".join(run["name"] for run in runs), data)


def read_run(directory: Path) -> dict[str, Any]:
    """What the page shows of a run: its curves, its figures, its settings.

    Raises:
        UserError: no metrics there, or a file of it that cannot be read.
    """
    lines = read_metrics(directory / METRICS_FILE)
    if not lines:
        raise UserError(f"{directory / METRICS_FILE}: no metrics there; name the --output of a pretraining run")
    try:
        recipe = yaml.safe_load((directory / RECIPE_FILE).read_text(encoding="utf-8"))
        recorded = json.loads((directory / RUN_FILE).read_text(encoding="utf-8"))
        summary_file = directory / SUMMARY_FILE
        summary = json.loads(summary_file.read_text(encoding="utf-8")) if summary_file.is_file() else {}
        loss = [line["loss"] for line in lines]
        columns = {name: [line[name] for line in lines] for name in ("tokens", "seconds", "learning_rate")}
    except (OSError, ValueError, KeyError, yaml.YAMLError) as error:
        raise UserError(f"{directory}: its training/ cannot be read ({type(error).__name__}: {error})") from error
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
    """Nested settings -> dotted name -> text; what is empty is text too."""
    if isinstance(value, dict) and value:
        parts = (flatten(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items())
        return {key: text for part in parts for key, text in part.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):  # the stages
        return flatten({str(i): inner for i, inner in enumerate(value)}, name)
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def _figures(lines: list[dict], recorded: dict, summary: dict, validated: list[int]) -> list[list[str]]:
    """Rows of the page's first table: name, text."""
    last = lines[-1]
    best = min((lines[i]["validation_loss"] for i in validated), default=None)
    return [
        ["validation loss, last", f"{lines[validated[-1]]['validation_loss']:.3f}" if validated else "-"],
        ["validation loss, lowest", "-" if best is None else f"{best:.3f}"],
        ["steps", f"{last['step']:,} of {recorded['max_steps']:,}"],
        ["tokens", f"{last['tokens']:,}"],
        ["minutes of training", f"{last['seconds'] / 60:.1f}"],
        ["tokens a second", f"{last['tokens'] / max(last['seconds'], 1e-9):,.0f}"],
        ["parameters", f"{summary['parameters']:,}" if "parameters" in summary else "not finished"],
    ]


def _short(values: list[float]) -> list[float | None]:
    """Five figures are more than a screen shows; what is no number leaves a gap."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]
