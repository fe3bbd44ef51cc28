"""The result's model card and the picture in it."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed, and none is opened
import matplotlib.pyplot as plt
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.ticker import MaxNLocator

from hf_tiny_transformer.card_figures import CardFigures, finetuning_figures, table_line
from hf_tiny_transformer.cards import CARD_FILE, describe_tokenizer, escape, run_snippet
from hf_tiny_transformer.runs import atomic_write_json, atomic_write_text

from .checkpoint import Checkpoint
from .examples import Example
from .tasks import Task
from .train import ScoredSeed

TEMPLATE = Path(__file__).resolve().parent.parent / "model_cards" / "finetuned.md"
RECIPE = (
    *("learning_rate", "batch_size", "epochs", "patience", "warmup_ratio", "weight_decay", "dropout", "token_masking"),
    *("label_smoothing", "layer_decay", "lora", "search"),
)
SHAPE = (("layers", "num_hidden_layers"), ("wide", "hidden_size"), ("heads", "num_attention_heads"))


def write_card(
    directory: Path, results: dict, task: Task, best: ScoredSeed, checkpoint: Checkpoint, example: Example, name: str
) -> None:
    """Draws the curve, runs the card's code on the model in `directory`, and writes results.json and the card.

    Args:
        example: what the code is run on.
        name: the model's.

    Raises:
        RunError: the code fails; results.json is there.
    """
    (directory / "training").mkdir()
    draw_curve(results, directory / "training" / "loss.png")
    atomic_write_json(directory / "results.json", results)
    is_ours = type(best.model).__module__.startswith("hf_tiny_transformer.")
    code = task.kind.usage(example, ", trust_remote_code=True" if is_ours else "")
    results["snippet_printed"] = run_snippet(code, directory)
    atomic_write_json(directory / "results.json", results)
    figures = finetuning_figures(results)
    card = ModelCard.from_template(
        _metadata(results, task, figures, checkpoint.source, name),
        template_path=str(TEMPLATE),
        table_line=table_line,
        escape=escape,
        name=name,
        purpose=task.kind.describe(),
        about=task.about,
        is_ours=is_ours,
        snippet=code,
        figures=figures,
        results=results,
        recipe=[setting for setting in RECIPE if results["settings"][setting]],
        config=best.model.config.to_dict(),
        shape=[(what, field) for what, field in SHAPE if field in best.model.config.to_dict()],
        class_name=type(best.model).__name__,
        tokenizer=describe_tokenizer(checkpoint.tokenizer),
    )
    atomic_write_text(directory / CARD_FILE, f"{card}\n")


def draw_curve(results: dict, path: Path) -> None:
    """Training loss and the validation score of every seed over epochs, as a PNG; the published weights are marked."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5), sharex=True, constrained_layout=True)
    for record in results["seeds"]:
        epochs = [line["epoch"] for line in record["epochs"]]
        scores = [100 * line["validation"] for line in record["epochs"]]
        label = f"seed {record['seed']}"
        top.plot(epochs, [line["train_loss"] for line in record["epochs"]], marker="o", markersize=4, label=label)
        bottom.plot(epochs, scores, marker="o", markersize=4, label=label)
        if record["seed"] == results["best_seed"]:
            published = (record["best_epoch"], 100 * record["validation"])
            bottom.plot(*published, marker="o", markersize=11, markerfacecolor="none", color="black", linestyle="")
            above = {"xytext": (0, 10), "textcoords": "offset points", "ha": "center"}  # no curve is there
            bottom.annotate("published", published, **above)
    top.set_ylabel("training loss")
    top.legend(frameon=False)
    bottom.set(xlabel="epoch", ylabel=f"validation {results['metric']}, %")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.margins(y=0.25)  # room for the mark
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _metadata(results: dict, task: Task, figures: CardFigures, source: str, name: str) -> ModelCardData:
    """The scores are those of the weights beside the card, as the Hub reads them (model-index). What lies on the Hub
    itself, the data or the model `source`, is linked."""
    from_hub = not Path(source).is_dir() and not results["settings"]["from_scratch"]
    return ModelCardData(
        library_name="transformers",
        license=results["settings"]["license"],
        pipeline_tag=task.kind.pipeline_tag,
        tags=["hf-tiny-transformer"],
        base_model=source if from_hub else None,
        datasets=[task.dataset] if task.glue is not None else None,
        model_name=name,
        eval_results=[
            EvalResult(
                task_type=task.kind.pipeline_tag,
                dataset_type=task.dataset,
                dataset_name=task.about,
                dataset_config=task.dataset_config,
                dataset_split=split,
                metric_type=metric,
                metric_value=value,
            )
            for split, metric, value in figures.index
        ],
    )
