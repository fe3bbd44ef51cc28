"""The end of a run: the model directory with its card, curve, figures and examples."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedTokenizerFast

from hf_tiny_transformer.card_figures import CardFigures, pretraining_figures, table_line
from hf_tiny_transformer.cards import (
    CARD_FILE,
    THIS_DIRECTORY,
    describe_tokenizer,
    escape,
    estimate_energy,
    run_snippet,
)
from hf_tiny_transformer.foreign_code import PACKAGE, strip_files
from hf_tiny_transformer.push import MODEL_FILES, TOKENIZER
from hf_tiny_transformer.runs import atomic_write_json, atomic_write_text

from .checkpoint import OPTIMIZER_FILE, STATE_FILE, read_progress
from .curve import draw_curve
from .demonstrate import demonstrate
from .metrics import read_metrics
from .prepare import PreparedData
from .recipe import Recipe
from .tokenizer import MASK, SPANS

# objective -> what kind of model it makes, as its card and the Hub name it
KINDS = {
    "mlm": ("masked language model", "fill-mask", "masked-lm"),
    "mlm_nsp": ("masked language model", "fill-mask", "masked-lm"),
    "next_token": ("causal language model", "text-generation", "causal-lm"),
    "span_corruption": ("encoder-decoder", None, "seq2seq-lm"),
}
PUBLISHED = [name for name in (*MODEL_FILES, *TOKENIZER) if name != "*.py"]
DATA_FACTS = ("documents", "duplicates", "characters", "train_tokens", "validation_tokens", "fingerprint")
CARD_TEMPLATE = Path(__file__).resolve().parent.parent / "model_cards" / "template.md"
PIPELINE_SNIPPET = """\
from transformers import pipeline

{model_id}
pipe = pipeline("{task}", model=model_id, trust_remote_code=True)
{use}"""
SEQ2SEQ_SNIPPET = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

{model_id}
tokenizer = AutoTokenizer.from_pretrained(model_id)
model = AutoModelForSeq2SeqLM.from_pretrained(model_id, trust_remote_code=True)
written = model.generate(**tokenizer({text!r}, return_tensors="pt"), max_new_tokens=20, do_sample=False)
print(tokenizer.decode(written[0]))"""


def publish(
    output: Path,
    checkpoint: Path,
    data: PreparedData,
    recipe: Recipe,
    recorded: dict,
    timings: dict[str, float],
    processes: int,
) -> None:
    """Puts a checkpoint's model at the top of the run's directory, opens it from there, and writes what it shows.

    Args:
        timings: name of a step -> seconds.

    Raises:
        RunError: the code that the card would show fails; all but the card and the summary is there.
    """
    (output / CARD_FILE).unlink(missing_ok=True)  # of the model that lay there before a resume
    _copy_model(checkpoint, output)
    progress = read_progress(checkpoint)
    metrics = read_metrics(output / "training" / "metrics.jsonl")
    examples = demonstrate(output, recipe.family, recipe.examples)
    draw_curve(metrics, output / "training" / "loss.png", recipe, recorded["max_steps"])
    code = _snippet(recipe, data.tokenizer)
    summary = {
        "steps": progress.step,
        "tokens": progress.tokens,
        "parameters": _count_parameters(output / "model.safetensors"),
        **_validation_figures(metrics, progress.step),
        "data": {name: data.facts[name] for name in DATA_FACTS},
        "hardware": _hardware(processes),
        "energy": estimate_energy(timings["train"], processes),
        "timings": timings,
        "examples": examples,
        "snippet_printed": run_snippet(code, output),
    }
    atomic_write_json(output / "training" / "summary.json", summary)
    atomic_write_text(output / CARD_FILE, _card(output, data, recipe, recorded, summary, code))
    for line in examples:
        print(line)
    print(f"{output}: validation loss {summary['validation_loss']:.3f} after {progress.tokens:,} tokens")


def _validation_figures(metrics: list[dict], step: int) -> dict[str, float]:
    """Those of the published step."""
    line = next(line for line in reversed(metrics) if line["step"] == step)
    return {name: value for name, value in line.items() if name.startswith("validation_")}


def _copy_model(checkpoint: Path, output: Path) -> None:
    """All that we wrote, but for what only a resume needs, and the code as this package has it; what else lies there
    stays there, with a line. config.json goes last: a directory that has it has everything."""
    with tempfile.TemporaryDirectory(dir=output, prefix=".model-") as staging:
        for file in sorted(checkpoint.iterdir()):
            is_code = file.suffix == ".py" and (PACKAGE / file.name).is_file()
            if is_code or (file.is_file() and any(map(file.match, PUBLISHED))):
                shutil.copyfile(PACKAGE / file.name if is_code else file, Path(staging) / file.name)
            elif file.name not in (STATE_FILE, OPTIMIZER_FILE):
                print(f"{file}: not written by this package, and left out of {output}", file=sys.stderr)
        strip_files(Path(staging), checkpoint)
        for file in sorted(Path(staging).iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, output / file.name)


def _count_parameters(file: Path) -> int:
    """A tied matrix is in the file once, and counts once."""
    with safe_open(file, framework="pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _snippet(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> str:
    """Python that opens the model and uses it for what it was trained for."""
    text = next((text for text in recipe.examples if text.count(MASK) == 1 or recipe.family == "decoder"), None)
    if recipe.family == "seq2seq":
        return SEQ2SEQ_SNIPPET.format(model_id=THIS_DIRECTORY, text=(text or f"it {MASK} .").replace(MASK, SPANS[0]))
    _, task, _ = KINDS[recipe.objective]
    if recipe.family == "decoder":
        use = f"print(pipe({text or 'it'!r}, max_new_tokens=20, do_sample=False)[0]['generated_text'])"
    else:
        text = (text or f"it is {MASK} .").replace(MASK, tokenizer.mask_token)
        use = f"for guess in pipe({text!r}, top_k=3):\n    print(guess['token_str'], round(guess['score'], 3))"
    return PIPELINE_SNIPPET.format(model_id=THIS_DIRECTORY, task=task, use=use)


def _hardware(processes: int) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return f"{processes} x {device}, {torch.get_num_threads()} thread(s)"


def _card(output: Path, data: PreparedData, recipe: Recipe, recorded: dict, summary: dict, code: str) -> str:
    config = AutoConfig.from_pretrained(output, trust_remote_code=False)
    kind, pipeline_tag, tag = KINDS[recipe.objective]
    figures = pretraining_figures(summary)
    from_hub = [source.split(":")[1] for source in recorded["corpus"] if source.startswith("hub:")]
    card_data = ModelCardData(
        library_name="transformers",
        license=recorded.get("license"),
        pipeline_tag=pipeline_tag,
        tags=["hf-tiny-transformer", tag],
        datasets=from_hub or None,
        model_name=output.absolute().name,
        eval_results=_eval_results(figures, pipeline_tag or "text2text-generation", recorded["corpus"]),
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(CARD_TEMPLATE),
        table_line=table_line,
        escape=escape,
        name=output.absolute().name,
        kind=kind,
        class_name=config.architectures[0],
        config=config,
        recipe=recipe,
        run=recorded,
        license=recorded.get("license"),
        snippet=code,
        figures=figures,
        summary=summary,
        tokenizer=describe_tokenizer(data.tokenizer),
        versions={name: version(name) for name in ("torch", "transformers", "tokenizers", "accelerate")},
    )
    return f"{card}\n"


def _eval_results(figures: CardFigures, task: str, corpus: list[str]) -> list[EvalResult]:
    """For the card's metadata; a corpus that is not of the Hub is named all the same, as the Hub asks for a name."""
    return [
        EvalResult(
            task_type=task,
            dataset_type=", ".join(corpus),
            dataset_name="held-out documents of the corpus",
            dataset_split=split,
            metric_type=metric,
            metric_value=value,
        )
        for split, metric, value in figures.index
    ]
