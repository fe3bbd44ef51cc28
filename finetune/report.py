"""What a run leaves: results.json (`Results`), the table, the Markdown report and the model card."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import read_json
from hf_tiny_transformer.publish.card import Card, Figure, Section, escape, markdown_table
from hf_tiny_transformer.publish.facts import describe_tokenizer, percent, spread, time_and_energy

from .data import Example
from .kinds import Checkpoint
from .tasks import Task
from .train import SeedResult

RESULTS_FILE = "results.json"
OPTIMIZATION = ("learning_rate", "batch_size", "epochs", "patience", "warmup_ratio", "weight_decay")
RECIPE = (*OPTIMIZATION, "dropout", "token_masking", "class_weights", "lora", "search")
SHAPE = (("layers", "num_hidden_layers"), ("wide", "hidden_size"), ("heads", "num_attention_heads"))
MOST_DRAWN = 20  # classes in the picture of the confusion
SEARCH, SEEDS = "search", "train and score all seeds"  # steps that made the model, in `Results.timings`
Spread = dict[str, Any]  # `mean` and sample standard deviation `std`, None for a single figure


@dataclass(frozen=True)
class Row:
    """One line of the table: a method, or the seeds of a model."""

    name: str
    choice: str  # what was chosen on validation
    validation: Spread  # the main score
    test: Spread  # the main score on the first reported split
    scores: dict[str, dict[str, Spread]]  # by reported split and metric
    seconds: float
    seeds: list[dict[str, Any]]

    @classmethod
    def of(cls, name: str, runs: Sequence[SeedResult], main: str, seconds: float, choice: str = "") -> Row:
        """Summarise the seeds of a model, or the single run, without epochs, of a method without chance."""
        first = next(iter(runs[0].scores))
        scores = {
            split: {metric: _spread([run.scores[split][metric] for run in runs]) for metric in metrics}
            for split, metrics in runs[0].scores.items()
        }
        seeds = [asdict(run) | {"test": run.scores[first][main]} for run in runs if run.epochs]
        validation = _spread([run.validation for run in runs])
        return cls(name, choice, validation, scores[first][main], scores, round(seconds, 2), seeds)


def _spread(scores: Sequence[float]) -> Spread:
    return {"mean": statistics.fmean(scores), "std": statistics.stdev(scores) if len(scores) > 1 else None}


@dataclass(frozen=True)
class Results:
    """The content of results.json: 1 is a perfect score; `test` is the main metric on the first reported split."""

    task: str
    model: str
    metric: str
    validation: dict[str, Any]
    test: dict[str, Any]
    scores: dict[str, dict[str, Any]]
    best_seed: int
    seeds: list[dict[str, Any]]
    comparison: list[dict[str, Any]]
    search: dict[str, Any] | None
    settings: dict[str, Any]
    parameters: int
    data: dict[str, Any]
    versions: dict[str, str]
    device: str
    processes: int
    command: str
    energy: dict[str, Any]
    timings: dict[str, float]
    seconds: float
    by_class: dict[str, Any] | None = None  # of the best seed, on the first reported split

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read a results.json."""
        advice = f"delete {path.parent} to run it again"
        try:
            return cls(**read_json(path, advice))
        except TypeError as error:
            raise UserError(f"{path}: is not the result of a fine-tuning run ({error}); {advice}") from None


def table_cells(rows: Sequence[Row], main: str) -> list[tuple[str, ...]]:
    """Return header and lines of the table; `main` is the metric used for model selection."""
    columns = [f"{split} {metric}, %" for split, metrics in rows[0].scores.items() for metric in metrics]
    cells: list[tuple[str, ...]] = [("model", "seeds", f"validation {main}, %", *columns, "seconds")]
    for row in rows:
        figures = [spread(**score) for metrics in row.scores.values() for score in metrics.values()]
        cells.append((row.name, str(len(row.seeds) or "-"), spread(**row.validation), *figures, f"{row.seconds:.1f}"))
    return cells


def text_table(cells: Sequence[Sequence[str]]) -> str:
    """Align the columns: the name to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells]
    return "\n".join(map("  ".join, lines))


def markdown_report(results: Results, rows: Sequence[Row]) -> str:
    """Return the report: table, choices and command; results.json has the rest."""
    header, *lines = table_cells(rows, results.metric)
    parts = [
        f"# {escape(results.task)}: {escape(results.model)}",
        markdown_table(header, lines),
        "Mean ± standard deviation over seeds. Every choice (epoch, seed, C, the control's learning rate) was made on "
        f"validation; the {' and '.join(results.scores)} split was read once per run.",
        "\n".join(f"- {escape(row.name)}: {escape(row.choice)}" for row in rows if row.choice),
    ]
    parts += ["## Command", f"```\n{escape(results.command, 'block')}\n```"]
    return "\n\n".join(filter(None, parts)) + "\n"


def describe_model(
    results: Results, task: Task, model: PreTrainedModel, checkpoint: Checkpoint, example: Example, name: str
) -> Card:
    """Return the content of the card of `model`, made from `checkpoint`; its code is run on the training example."""
    settings, config, kind = results.settings, model.config.to_dict(), task.kind
    is_ours = type(model).__module__.startswith("hf_tiny_transformer.")
    from_hub = not Path(checkpoint.source).is_dir() and not settings["from_scratch"]
    base = f"`{escape(results.model, 'code')}`"
    origin = "trained from scratch in the shape of" if settings["from_scratch"] else "fine-tuned from"
    shape = "".join(f", {config[name]} {what}" for what, name in SHAPE if name in config)
    best = results.seeds[results.best_seed - 1]
    trained = results.timings[SEEDS] + results.timings.get(SEARCH, 0.0)
    return Card(
        name=name,
        summary=f"A model for {escape(kind.describe())}, {origin} {base} with hf_tiny_transformer.",
        code=kind.usage(example, ", trust_remote_code=True" if is_ours else ""),
        data=_facts(
            ("task", task.about),
            ("rows", ", ".join(f"{split} {count:,}" for split, count in results.data["counts"].items())),
            ("fingerprint", f"`{results.data['sha256'][:16]}`"),
        ),
        model=_facts(
            ("architecture", f"{model.config.model_type}: {type(model).__name__}{shape}"),
            ("tokenizer", describe_tokenizer(checkpoint.tokenizer)),
            ("longest text", f"{checkpoint.max_length} tokens"),
            ("parameters", f"{results.parameters:,}"),
        ),
        training=_facts(
            *((name.replace("_", " "), str(settings[name])) for name in RECIPE if settings[name]),
            ("hardware", f"{results.processes} x {results.device}"),
            ("seeds", f"{len(results.seeds)}; these weights are those of seed {results.best_seed}"),
            *time_and_energy(trained, results.energy),
            ("versions", ", ".join(f"{name} {version}" for name, version in results.versions.items())),
            after="![loss](training/loss.png)\n\n`results.json` has settings, seeds, versions and times. Command:\n\n"
            f"```bash\n{escape(results.command, 'block')}\n```",
        ),
        evaluation=Section(
            header=("model", "split", "rows", "metric", "mean ± standard deviation over seeds, %", "these weights, %"),
            rows=_evaluation(results, best),
            after="Epoch and seed were chosen on validation; the other splits were read once per run."
            + _by_class(results),
        ),
        intended_use="The task above, on texts like those it was trained on.",
        limits="It has the biases of the texts and labels it was trained on"
        + ("" if settings["from_scratch"] else f", and of those that {base} was trained on")
        + ". It was evaluated only as shown on this page.",
        figures=[
            Figure(split, metric, score, RESULTS_FILE, f"/seeds/{results.best_seed - 1}/scores/{split}/{metric}")
            for split, metrics in best["scores"].items()
            for metric, score in metrics.items()
        ],
        task_type=kind.pipeline_tag,
        dataset={"name": task.about, "type": task.dataset, **({"config": task.name} if task.glue else {})},
        metadata={
            "license": settings["license"],
            "pipeline_tag": kind.pipeline_tag,
            "tags": ["hf-tiny-transformer"],
            "base_model": checkpoint.source if from_hub else None,
            "datasets": [task.dataset] if task.glue is not None else None,
        },
    )


def _facts(*rows: tuple[str, str], after: str = "") -> Section:
    """Return a section with a table of names and values."""
    return Section(header=("", ""), rows=rows, after=after)


def _evaluation(results: Results, best: dict[str, Any]) -> list[tuple[str, ...]]:
    counts, own = results.data["counts"], {"name": "this model", "scores": results.scores}
    validation = (f"{counts['validation']:,}", results.metric, spread(**results.validation))
    rows: list[tuple[str, ...]] = [("this model", "validation", *validation, percent(best["validation"]))]
    for row in (own, *results.comparison):
        for split, metrics in row["scores"].items():
            for metric, score in metrics.items():
                mine = percent(best["scores"][split][metric]) if row is own else ""
                rows.append((row["name"], split, f"{counts[split]:,}", metric, spread(**score), mine))
    return rows


def _by_class(results: Results) -> str:
    """Return the table of the classes as these weights predict them, and the picture of their confusion."""
    if (found := results.by_class) is None:
        return ""
    figures = zip(*(map(percent, found[name]) for name in ("precision", "recall", "f1")), strict=True)
    rows = zip(found["labels"], map(str, found["rows"]), figures, strict=True)
    table = markdown_table(
        ("class", "rows", "precision, %", "recall, %", "F1, %"),
        [(label, count, *three) for label, count, three in rows],
    )
    picture = "\n\n![confusion](training/confusion.png)" if is_drawn(results) else ""
    return f"\n\nBy class, on {next(iter(results.scores))}, these weights:\n\n{table}{picture}"


def is_drawn(results: Results) -> bool:
    """Return whether there is a picture of the confusion: of at most `MOST_DRAWN` classes."""
    return results.by_class is not None and len(results.by_class["labels"]) <= MOST_DRAWN


def draw_confusion(results: Results, path: Path) -> None:
    """Draw how many rows of each class were predicted as which, if `is_drawn`; the colour is the share."""
    if (found := results.by_class) is None or not is_drawn(results):
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts, labels = np.array(found["confusion"]), [label[:20] for label in found["labels"]]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 0.45 * len(labels)
    figure, axes = plt.subplots(figsize=(size, size), constrained_layout=True)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (true, predicted), count in np.ndenumerate(counts):
        colour = "white" if shares[true, predicted] > 0.5 else "black"
        axes.text(predicted, true, str(count), ha="center", va="center", color=colour)
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=45, ha="right")
    axes.set_yticks(places, labels)
    axes.set(xlabel="predicted", ylabel="true")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_curve(results: Results, path: Path) -> None:
    """Draw training loss and validation score of every seed over epochs."""
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, constrained_layout=True)
    for record in results.seeds:
        epochs = [line["epoch"] for line in record["epochs"]]
        style = {"marker": "o", "markersize": 4, "label": f"seed {record['seed']}"}
        top.plot(epochs, [line["train_loss"] for line in record["epochs"]], **style)
        bottom.plot(epochs, [100 * line["validation"] for line in record["epochs"]], **style)
    top.set_ylabel("training loss")
    top.legend(frameon=False)
    bottom.set(xlabel="epoch", ylabel=f"validation {results.metric}, %")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
