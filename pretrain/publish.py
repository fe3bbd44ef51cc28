"""The end of a run: the model directory with its card, curve, figures and examples."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from hf_tiny_transformer.common.checkpoints import TOKENIZER_FILES, WEIGHTS_FILE
from hf_tiny_transformer.common.environment import device_name, versions
from hf_tiny_transformer.common.errors import DivergedError
from hf_tiny_transformer.common.files import PARTIAL, SUMS, atomic_write_json, write_sums
from hf_tiny_transformer.common.foreign_code import KEPT_LOCALLY, PACKAGE, strip_files
from hf_tiny_transformer.common.processes import say
from hf_tiny_transformer.publish.card import CARD_FILE, THIS_DIRECTORY, Card, Figure, Section, escape, write_card
from hf_tiny_transformer.publish.facts import describe_tokenizer, estimate_energy, percent, time_and_energy

from .batches import VALIDATION_MASK_RATE
from .checkpoint import OPTIMIZER_FILE, STATE_FILE, read_progress
from .curve import draw_curve
from .data.prepare import PreparedData
from .data.tokenizer import MASK, SPANS
from .metrics import METRICS_FILE, read_metrics
from .recipe import Recipe
from .schedule import plan_stages
from .settings import RunRecord

SUMMARY_FILE = Path("training") / "summary.json"
# objective -> kind of model, pipeline and tag on the Hub
KINDS = {
    "mlm": ("masked language model", "fill-mask", "masked-lm"),
    "mlm_nsp": ("masked language model", "fill-mask", "masked-lm"),
    "next_token": ("causal language model", "text-generation", "causal-lm"),
    "span_corruption": ("encoder-decoder", None, "seq2seq-lm"),
}
MODEL_FILES = ("config.json", "generation_config.json", WEIGHTS_FILE, *TOKENIZER_FILES)
DATA_FACTS = ("documents", "duplicates", "characters", "train_tokens", "validation_tokens", "fingerprint")
# the code in the card, which uses the model for what it was trained for; `verify` allows little more than this
PIPELINE_CODE = """\
from transformers import pipeline

{model_id}
pipe = pipeline("{task}", model=model_id, trust_remote_code=True)
for text in {texts}:
"""
FILL_CODE = """\
    for guess in pipe(text, top_k=3):
        print(text, "->", guess["token_str"], round(guess["score"], 3))"""
CONTINUE_CODE = """\
    written = pipe(text, max_new_tokens=20, do_sample=False)
    print(text, "->", written[0]["generated_text"])"""
SEQ2SEQ_CODE = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

{model_id}
tokenizer = AutoTokenizer.from_pretrained(model_id)
model = AutoModelForSeq2SeqLM.from_pretrained(model_id, trust_remote_code=True)
for text in {texts}:
    written = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=20, do_sample=False)
    print(text, "->", tokenizer.decode(written[0]))"""


@dataclass
class Summary:
    """training/summary.json: the figures of a finished run.

    `timings` are seconds, tied parameters count once, and `examples` are what the code in the card prints.
    """

    steps: int
    tokens: int
    parameters: int
    validation_loss: float
    data: dict[str, Any]
    hardware: str
    energy: dict[str, Any]
    timings: dict[str, float]
    examples: list[str] = field(default_factory=list)
    validation_next_sentence_accuracy: float | None = None


def publish(
    output: Path,
    checkpoint: Path,
    data: PreparedData,
    recipe: Recipe,
    record: RunRecord,
    timings: dict[str, float],
    processes: int,
) -> None:
    """Copy a checkpoint's model to the top of the run's directory, use it from there, and write card and summary.

    Raises:
        DivergedError: The validation loss is not finite; nothing is written.
        RunError: The code in the card fails; everything but card and summary is written.
    """
    progress = read_progress(checkpoint)
    metrics = read_metrics(output / METRICS_FILE)
    line: dict[str, Any] = next((line for line in reversed(metrics) if line["step"] == progress.step), {})
    if not math.isfinite(line.get("validation_loss", math.nan)):
        raise DivergedError(f"step {progress.step}: the validation loss is not finite; nothing is published")
    for stale in (CARD_FILE, SUMS):  # of the model before a resume
        (output / stale).unlink(missing_ok=True)
    _copy_model(checkpoint, output)
    draw_curve(metrics, output / "training" / "loss.png", plan_stages(recipe, record.max_steps))
    summary = Summary(
        steps=progress.step,
        tokens=progress.tokens,
        parameters=_count_parameters(output / WEIGHTS_FILE),
        data={name: data.facts[name] for name in DATA_FACTS},
        hardware=f"{processes} x {device_name(record.precision)}",
        energy=estimate_energy(timings["train"], processes),
        timings=timings,
        **{name: value for name, value in line.items() if name.startswith("validation_")},
    )
    summary.examples = write_card(output, _card(output, data.tokenizer, recipe, record, summary)).splitlines()
    atomic_write_json(output / SUMMARY_FILE, asdict(summary))
    write_sums(output, leave_out=(KEPT_LOCALLY,))
    print(*summary.examples, sep="\n")
    print(f"{output}: validation loss {summary.validation_loss:.3f} after {progress.tokens:,} tokens")


def _copy_model(checkpoint: Path, output: Path) -> None:
    """Copy the files that this package writes, and its code as it is here; report other files and leave them.

    config.json is moved last: a directory that has it is complete.
    """
    with tempfile.TemporaryDirectory(dir=output, prefix=".model-", suffix=PARTIAL) as staging:
        for file in sorted(checkpoint.iterdir()):
            is_code = file.suffix == ".py" and (PACKAGE / file.name).is_file()
            if is_code or (file.is_file() and file.name in MODEL_FILES):
                shutil.copyfile(PACKAGE / file.name if is_code else file, Path(staging) / file.name)
            elif file.name not in (STATE_FILE, OPTIMIZER_FILE, METRICS_FILE.name, SUMS):
                say(f"{file}: not written by this package, and not copied to {output}")
        strip_files(Path(staging), checkpoint)
        for file in sorted(Path(staging).iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, output / file.name)


def _count_parameters(file: Path) -> int:
    with safe_open(file, framework="pt") as weights:  # which has a tied matrix once
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _code(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return Python that loads the model and shows what it makes of each example."""
    code, texts = PIPELINE_CODE + CONTINUE_CODE, recipe.examples or ["it"]
    if recipe.family == "seq2seq":
        code, texts = SEQ2SEQ_CODE, recipe.examples or [MASK]
        texts = [reduce(lambda text, span: text.replace(MASK, span, 1), SPANS, text) for text in texts]
    elif recipe.family != "decoder":
        code = PIPELINE_CODE + FILL_CODE
        texts = [text for text in texts if text.count(MASK) == 1] or [f"it is {MASK} ."]  # else guesses are nested
        texts = [text.replace(MASK, tokenizer.mask_token) for text in texts]
    listed = "[\n" + "".join(f"    {text!r},\n" for text in texts) + "]"
    return code.format(model_id=THIS_DIRECTORY, task=KINDS[recipe.objective][1], texts=listed)


def _card(
    output: Path, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, record: RunRecord, summary: Summary
) -> Card:
    config = AutoConfig.from_pretrained(output, trust_remote_code=False)
    kind, pipeline_tag, tag = KINDS[recipe.objective]
    origin = f"further pretrained from `{escape(record.init, 'code')}`" if record.init else "pretrained from scratch"
    counts, corpus, column = summary.data, ", ".join(record.corpus), ("", "")
    figures = [("loss", "validation_loss", summary.validation_loss)]
    evaluation = [("validation loss, nats per target token", f"{summary.validation_loss:.3f}")]
    if (accuracy := summary.validation_next_sentence_accuracy) is not None:
        figures.append(("accuracy", "validation_next_sentence_accuracy", accuracy))
        evaluation.append(("next-sentence accuracy, %", percent(accuracy)))
    protocol = f"{100 * VALIDATION_MASK_RATE:g} % of the tokens are masked, with a fixed seed."
    if recipe.objective == "next_token":
        protocol = "Every token is predicted from those before it."
    elif recipe.objective == "mlm_nsp":
        protocol += " The next-sentence loss is included."
    files = "`training/recipe.yaml` and `training/run.json` have all settings, `training/metrics.jsonl` all losses."
    return Card(
        name=output.absolute().name,
        summary=f"A small {kind} ({config.architectures[0]}), {origin} with hf_tiny_transformer.",
        code=_code(recipe, tokenizer),
        data=Section(
            header=column,
            rows=[
                ("sources", corpus),
                ("documents", f"{counts['documents']:,} ({counts['duplicates']:,} exact duplicates dropped)"),
                ("characters", f"{counts['characters']:,}"),
                ("tokens, training / validation", f"{counts['train_tokens']:,} / {counts['validation_tokens']:,}"),
                ("fingerprint", f"`{counts['fingerprint'][:16]}`"),
            ],
        ),
        model=Section(
            header=column,
            rows=[
                ("architecture", _architecture(config)),
                ("tokenizer", describe_tokenizer(tokenizer)),
                ("parameters", f"{summary.parameters:,}"),
            ],
        ),
        training=Section(
            header=column, rows=_training(recipe, record, summary), after=f"![loss](training/loss.png)\n\n{files}"
        ),
        evaluation=Section(header=("on held-out documents", ""), rows=evaluation, after=protocol),
        intended_use="Fine-tuning on tasks in the domain of its corpus, and experiments with small models.",
        limits=(
            "The model is small and has read little text: it has no world knowledge and the biases of its corpus. "
            "Nothing was evaluated except the figures above."
        ),
        figures=[Figure("validation", name, value, str(SUMMARY_FILE), f"/{key}") for name, key, value in figures],
        task_type=pipeline_tag or "text2text-generation",
        dataset={"type": corpus, "name": "held-out documents of the corpus"},
        metadata={
            "license": record.license,
            "pipeline_tag": pipeline_tag,
            "tags": ["hf-tiny-transformer", tag],
            "datasets": [source.split(":")[1] for source in record.corpus if source.startswith("hub:")] or None,
        },
    )


def _architecture(config: PreTrainedConfig) -> str:
    layers = f"{config.num_hidden_layers} layers"
    if config.is_encoder_decoder:
        layers = f"{config.num_hidden_layers} encoder and {config.num_decoder_layers} decoder layers"
    return (
        f"{config.model_type}: {layers}, width {config.hidden_size}, {config.num_attention_heads} heads, feed-forward "
        f"width {config.intermediate_size}, up to {config.max_position_embeddings} positions"
    )


def _training(recipe: Recipe, record: RunRecord, summary: Summary) -> list[tuple[str, ...]]:
    masking = f", {recipe.masking} masking" if recipe.objective.startswith("mlm") else ""
    matrices = f" (matrices {recipe.matrix_learning_rate})" if recipe.optimizer == "muon" else ""
    stages = "; ".join(
        f"{100 * stage.share:.1f} %: {stage.batch_size} x {stage.block_size} tokens"
        + (f", {100 * stage.mask_rate:.1f} % masked" if stage.mask_rate else "")
        for stage in recipe.stages
    )
    found = versions(("torch", "transformers", "tokenizers", "accelerate"))
    return [
        ("objective", recipe.objective + masking),
        ("stages", stages),
        (
            "optimizer",
            f"{recipe.optimizer}, learning rate {recipe.learning_rate}{matrices}, warm-up {recipe.warmup}, "
            f"decay {recipe.decay} of the run",
        ),
        ("seed", str(record.seed)),
        ("hardware", summary.hardware),
        ("steps / tokens read", f"{summary.steps:,} / {summary.tokens:,}"),
        *time_and_energy(summary.timings["train"], summary.energy),
        ("versions", ", ".join(f"{name} {number}" for name, number in found.items())),
    ]
