"""The figures of a model card, taken from the files that a run leaves: the cards are written with them, and `verify`
holds the cards against them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cards import escape
from .runs import UserError

RESULTS_FILE = Path("results.json")  # of a fine-tuned model
SUMMARY_FILE = Path("training") / "summary.json"  # of a pretrained one
Row = tuple[str, ...]  # of a table, as text
_CODE = re.compile(r"`[\w.-]+`")  # a cell of ours that is shown as code


@dataclass(frozen=True)
class CardFigures:
    """Rows of the card's tables by section; `index` is what its metadata (model-index) holds: split, metric, value."""

    data: list[Row]
    model: list[Row]
    training: list[Row]
    evaluation: list[Row]
    index: list[tuple[str, str, float]]

    def lines(self) -> list[str]:
        """Every row as it stands in the card."""
        return [table_line(row) for row in [*self.data, *self.model, *self.training, *self.evaluation]]


def table_line(row: Row) -> str:
    """A row of a Markdown table, whatever its cells hold."""
    return "| " + " | ".join(cell if _CODE.fullmatch(cell) else escape(cell) for cell in row) + " |"


def read_figures(directory: Path) -> CardFigures:
    """What a model directory's files say.

    Raises:
        UserError: they are not there, or hold something else.
    """
    for name, figures in ((RESULTS_FILE, finetuning_figures), (SUMMARY_FILE, pretraining_figures)):
        if (directory / name).is_file():
            try:
                return figures(json.loads((directory / name).read_text(encoding="utf-8")))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                what = f"{type(error).__name__}: {error}"
                raise UserError(f"{name}: lacks what the card states ({what}); make the model anew") from error
    raise UserError(f"neither {RESULTS_FILE} nor {SUMMARY_FILE}, which hold the figures; make the model anew")


def pretraining_figures(summary: dict[str, Any]) -> CardFigures:
    """Of what pretraining's summary.json holds."""
    data, loss = summary["data"], summary["validation_loss"]
    evaluation = [("validation loss, nats per token asked for", f"{loss:.3f}")]
    index = [("validation", "loss", round(loss, 6))]
    if (accuracy := summary.get("validation_next_sentence_accuracy")) is not None:
        evaluation.append(("next sentences told from random ones, %", percent(accuracy)))
        index.append(("validation", "accuracy", round(accuracy, 6)))
    return CardFigures(
        data=[
            ("documents", f"{data['documents']:,} ({data['duplicates']:,} exact duplicates dropped)"),
            ("characters", f"{data['characters']:,}"),
            ("tokens, training / validation", f"{data['train_tokens']:,} / {data['validation_tokens']:,}"),
            ("fingerprint", f"`{data['fingerprint'][:16]}`"),
        ],
        model=[("parameters", f"{summary['parameters']:,}")],
        training=[
            ("steps / tokens read", f"{summary['steps']:,} / {summary['tokens']:,}"),
            *_time_and_energy(summary["timings"]["train"], summary["energy"]),
        ],
        evaluation=evaluation,
        index=index,
    )


def finetuning_figures(results: dict[str, Any]) -> CardFigures:
    """Of what fine-tuning's results.json holds. An evaluation's row: model, split, rows, metric, mean over seeds, the
    published weights."""
    counts, best = results["data"]["counts"], results["seeds"][results["best_seed"] - 1]
    name = "this model"
    validation = (name, "validation", f"{counts['validation']:,}", results["metric"])
    evaluation = [(*validation, spread(results["validation"]), percent(best["validation"]))]
    for split, metric, score in _scores(results["scores"]):
        mine = percent(best["scores"][split][metric])
        evaluation.append((name, split, f"{counts[split]:,}", metric, spread(score), mine))
    for other in results["comparison"]:
        for split, metric, score in _scores(other["scores"]):
            evaluation.append((other["name"], split, f"{counts[split]:,}", metric, spread(score), ""))
    return CardFigures(
        data=[
            ("rows", ", ".join(f"{split} {count:,}" for split, count in counts.items())),
            ("fingerprint", f"`{results['data']['sha256'][:16]}`"),
        ],
        model=[("parameters", f"{results['parameters']:,}")],
        training=[
            ("seeds", f"{len(results['seeds'])}; the weights here are those of seed {results['best_seed']}"),
            *_time_and_energy(training_seconds(results["timings"]), results["energy"]),
        ],
        evaluation=evaluation,
        index=[(split, metric, round(value, 6)) for split, metric, value in _scores(best["scores"])],
    )


def training_seconds(timings: dict[str, float]) -> float:
    """Of a fine-tuning run's steps, those that made the model: all seeds, and the search before them."""
    return timings["train and score all seeds"] + timings.get("search", 0.0)


def percent(score: float) -> str:
    """A share in percent, two decimals."""
    return f"{100 * score:.2f}"


def spread(score: dict[str, float | None]) -> str:
    """Mean and, where there are several seeds, standard deviation, in percent."""
    return percent(score["mean"]) + ("" if score["std"] is None else f" ± {percent(score['std'])}")


def _scores(scores: dict[str, dict]) -> list[tuple[str, str, Any]]:
    return [(split, metric, value) for split, metrics in scores.items() for metric, value in metrics.items()]


def _time_and_energy(seconds: float, energy: dict) -> list[Row]:
    amount = "" if energy["kwh"] is None else f"{1000 * energy['kwh']:.3g} Wh: "
    return [
        ("training time", f"{seconds / 60:.1f} minutes"),
        ("energy, an estimate", f"{amount}{energy['method']}"),
    ]
