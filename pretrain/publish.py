"""The end of a run: the model directory with its card, curve, figures and examples."""

from __future__ import annotations

import logging
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, pipeline
from transformers.utils import logging as transformers_logging

from hf_tiny_transformer.runs import atomic_write_json, atomic_write_text

from .checkpoint import Progress
from .curve import draw_curve
from .metrics import read_metrics
from .prepare import PreparedData
from .recipe import Recipe

CARD_TEMPLATE = Path(__file__).resolve().parent.parent / "model_cards" / "template.md"
TOP_K = 5

logger = logging.getLogger(__name__)


def publish(
    output: Path,
    model: PreTrainedModel,
    data: PreparedData,
    recipe: Recipe,
    recorded: dict,
    progress: Progress,
    timings: dict[str, float],
) -> None:
    """Puts the finished model at the top of the run's directory, opens it again from there, and writes what it shows.

    Args:
        timings: name of a step -> seconds.
    """
    _save_model(output, model, data)
    metrics = read_metrics(output / "training" / "metrics.jsonl")
    examples = fill_in(output, recipe.examples)
    draw_curve(metrics, output / "training" / "loss.png")
    summary = {
        "steps": progress.step,
        "tokens": progress.tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        **{name: value for name, value in metrics[-1].items() if name.startswith("validation_")},
        "timings": timings,
        "examples": examples,
    }
    atomic_write_json(output / "training" / "summary.json", summary)
    atomic_write_text(output / "README.md", str(_card(output, model, data, recipe, recorded, summary)))
    for line in examples:
        print(line)
    print(f"{output}: validation loss {summary['validation_loss']:.3f} after {progress.tokens:,} tokens")


def fill_in(directory: Path, texts: list[str]) -> list[str]:
    """The model's most likely words for each [MASK], with their probabilities, as a user would get them: through
    `AutoModelForMaskedLM` and the fill-mask pipeline."""
    if not texts:
        return []
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForMaskedLM.from_pretrained(directory)
    fill_mask = pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    transformers_logging.set_verbosity(verbosity)
    lines = []
    for text in texts:
        guesses = fill_mask(text, top_k=TOP_K)
        lines.append(f"{text}  ->  " + ", ".join(f"{g['token_str'].strip()} {g['score']:.2f}" for g in guesses))
    return lines


def _save_model(output: Path, model: PreTrainedModel, data: PreparedData) -> None:
    """config.json goes last: a directory that has it has everything."""
    with tempfile.TemporaryDirectory(dir=output, prefix=".model-") as staging:
        model.save_pretrained(staging)
        data.tokenizer.save_pretrained(staging)
        for file in sorted(Path(staging).iterdir(), key=lambda file: file.name == "config.json"):
            file.chmod(0o644)  # safetensors writes 0600, which a model server could not read
            os.replace(file, output / file.name)


def _card(
    output: Path,
    model: PreTrainedModel,
    data: PreparedData,
    recipe: Recipe,
    recorded: dict,
    summary: dict,
) -> ModelCard:
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="fill-mask",
        tags=["hf-tiny-transformer", "masked-lm"],
    )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return ModelCard.from_template(
        card_data,
        template_path=str(CARD_TEMPLATE),
        name=output.name,
        class_name=type(model).__name__,
        config=model.config,
        recipe=recipe,
        run=recorded,
        facts=data.facts,
        summary=summary,
        device=f"{device}, {torch.get_num_threads()} threads",
        versions={name: version(name) for name in ("torch", "transformers", "tokenizers", "accelerate")},
    )
