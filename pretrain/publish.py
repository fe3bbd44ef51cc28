"""The end of a run: the model directory with its card, curve, figures and examples."""

from __future__ import annotations

import math
import os
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open
from transformers import AutoConfig

from hf_tiny_transformer.runs import atomic_write_json, atomic_write_text

from .checkpoint import OPTIMIZER_FILE, STATE_FILE, read_progress
from .curve import draw_curve
from .demonstrate import demonstrate
from .metrics import read_metrics
from .prepare import PreparedData
from .recipe import Recipe

# objective -> what kind of model it makes, as its card and the Hub name it
KINDS = {
    "mlm": ("masked language model", "fill-mask", "masked-lm"),
    "mlm_nsp": ("masked language model", "fill-mask", "masked-lm"),
    "next_token": ("causal language model", "text-generation", "causal-lm"),
    "span_corruption": ("encoder-decoder", None, "seq2seq-lm"),
}
CARD_TEMPLATE = Path(__file__).resolve().parent.parent / "model_cards" / "template.md"


def publish(
    output: Path,
    checkpoint: Path,
    data: PreparedData,
    recipe: Recipe,
    recorded: dict,
    timings: dict[str, float],
) -> None:
    """Puts a checkpoint's model at the top of the run's directory, opens it from there, and writes what it shows.

    Args:
        timings: name of a step -> seconds.
    """
    _copy_model(checkpoint, output)
    progress = read_progress(checkpoint)
    metrics = read_metrics(output / "training" / "metrics.jsonl")
    examples = demonstrate(output, recipe.family, recipe.examples)
    draw_curve(metrics, output / "training" / "loss.png", recipe, recorded["max_steps"])
    summary = {
        "steps": progress.step,
        "tokens": progress.tokens,
        "parameters": _count_parameters(output / "model.safetensors"),
        **_validation_figures(metrics, progress.step),
        "timings": timings,
        "examples": examples,
    }
    atomic_write_json(output / "training" / "summary.json", summary)
    atomic_write_text(output / "README.md", str(_card(output, data, recipe, recorded, summary)))
    for line in examples:
        print(line)
    print(f"{output}: validation loss {summary['validation_loss']:.3f} after {progress.tokens:,} tokens")


def _validation_figures(metrics: list[dict], step: int) -> dict[str, float]:
    """Those of the published step."""
    line = next(line for line in reversed(metrics) if line["step"] == step)
    return {name: value for name, value in line.items() if name.startswith("validation_")}


def _copy_model(checkpoint: Path, output: Path) -> None:
    """All but what only a resume needs. config.json goes last: a directory that has it has everything."""
    with tempfile.TemporaryDirectory(dir=output, prefix=".model-") as staging:
        shutil.copytree(checkpoint, staging, ignore=lambda *_: (STATE_FILE, OPTIMIZER_FILE), dirs_exist_ok=True)
        for file in sorted(Path(staging).iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, output / file.name)


def _count_parameters(file: Path) -> int:
    """A tied matrix is in the file once, and counts once."""
    with safe_open(file, framework="pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _card(output: Path, data: PreparedData, recipe: Recipe, recorded: dict, summary: dict) -> ModelCard:
    config = AutoConfig.from_pretrained(output)
    kind, pipeline_tag, tag = KINDS[recipe.objective]
    card_data = ModelCardData(library_name="transformers", pipeline_tag=pipeline_tag, tags=["hf-tiny-transformer", tag])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return ModelCard.from_template(
        card_data,
        template_path=str(CARD_TEMPLATE),
        name=output.name,
        kind=kind,
        pipeline_tag=pipeline_tag,
        class_name=config.architectures[0],
        config=config,
        recipe=recipe,
        run=recorded,
        facts=data.facts,
        summary=summary,
        device=f"{device}, {torch.get_num_threads()} threads",
        versions={name: version(name) for name in ("torch", "transformers", "tokenizers", "accelerate")},
    )
