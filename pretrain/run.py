"""One run, top to bottom: prepare the data, build the loop, train, save, publish."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from hf_tiny_transformer.runs import (
    UserError,
    atomic_write_json,
    atomic_write_text,
    keep_freed_memory,
    require_free_output,
)

from .batches import BatchSource
from .checkpoint import Progress, latest_checkpoint, load_checkpoint, save_checkpoint
from .loop import TrainingLoop
from .metrics import Reporter
from .objectives import make_objective
from .optimizer import build_optimizers
from .packing import open_packed
from .prepare import PreparedData, initial_embeddings, prepare_data
from .publish import publish
from .recipe import CONFIG_CLASSES, Recipe
from .tokenizer import vocabulary_facts
from .validation import MASK_RATE as VALIDATION_MASK_RATE
from .validation import SEED as VALIDATION_SEED
from .validation import validate

RECIPE_FILE = Path("training") / "recipe.yaml"
DEFAULT_MINUTES = 5.0
SAVES_PER_RUN = 4
VALIDATIONS_PER_RUN = 10
AUTO_CLASSES = {
    "mlm": AutoModelForMaskedLM,
    "mlm_nsp": AutoModelForPreTraining,
    "next_token": AutoModelForCausalLM,
    "span_corruption": AutoModelForSeq2SeqLM,
}

logger = logging.getLogger(__name__)


@dataclass
class RunSettings:
    """What surrounds a recipe: where the text comes from, where the run goes, how long it may take.

    Args:
        output: directory of the run.
        corpus: sample, files, folders, globs, hub:NAME[:CONFIG].
        text_field: the column or field that holds the text, in .jsonl, .csv, .parquet and Hub data.
        seed: decides the weights at the start, the order of the blocks and the masks.
        minutes: turned into a number of steps once, from a measured rate; 5 when nothing is said.
        max_steps: the number of steps, instead of minutes.
        save_steps: a checkpoint at every so many steps; four in a run when nothing is said. Step 0 is saved too.
        resume: go on from the last checkpoint of the run in output, or begin if there is none.
    """

    output: str
    corpus: list[str]
    text_field: str = "text"
    seed: int = 1
    minutes: float | None = None
    max_steps: int | None = None
    save_steps: int | None = None
    resume: bool = False

    def validate(self) -> None:
        """Raises:
        UserError: a number out of range, or two budgets at once.
        """
        if self.minutes is not None and self.max_steps is not None:
            raise UserError("--minutes and --max-steps: give one of them")
        for name in ("minutes", "max_steps", "save_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be positive")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must not be negative")


def pretrain(settings: RunSettings, recipe: Recipe) -> None:
    """Trains by `recipe` and leaves a model directory at `settings.output` (see README, "What a run leaves").

    Raises:
        UserError: bad input of any kind; nothing is left half-written.
    """
    settings.validate()
    recipe.validate()
    keep_freed_memory()
    accelerator = Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no")
    output = Path(settings.output)
    recorded = _read_record(output) if settings.resume else None
    if recorded is None:
        require_free_output(output)
    speaks = accelerator.is_main_process
    start = time.perf_counter()
    data = prepare_data(settings.corpus, settings.text_field, recipe, accelerator)

    if recorded is not None:
        _require_same(recorded, output, settings, data, recipe)
    else:
        recorded = _record(settings, data, settings.max_steps or _measured_steps(settings, recipe, data, accelerator))
    loop = build_loop(recipe, data, accelerator, seed=recorded["seed"], max_steps=recorded["max_steps"])
    validation = _validation_batches(recipe, data)
    logger.info("model: %s parameters, %d steps", f"{_parameters(loop.model):,}", loop.max_steps)
    if speaks:  # only now: whatever is wrong with the input has shown itself
        _write_record(output, recorded, recipe)
    accelerator.wait_for_everyone()
    progress = _start(output, loop, data)
    _train(output, loop, data, validation, progress, save_steps=settings.save_steps)
    if speaks:
        timings = {"prepare": data.facts["prepare_seconds"], "train": round(progress.seconds, 1)}
        timings["all"] = round(time.perf_counter() - start, 1)
        publish(output, accelerator.unwrap_model(loop.model), data, recipe, recorded, progress, timings)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def build_model(recipe: Recipe, data: PreparedData, accelerator: Accelerator) -> PreTrainedModel:
    """A fresh model of the recipe's family, sized for the tokenizer; tokens that the counts know start from them."""
    config = CONFIG_CLASSES[recipe.family](**recipe.model, **_token_fields(recipe.family, data.tokenizer))
    model = AUTO_CLASSES[recipe.objective].from_config(config)
    if recipe.embedding_init == "cooccurrence":
        vectors = torch.from_numpy(initial_embeddings(data, model.config.hidden_size, accelerator))
        known = vectors.abs().sum(dim=1) > 0
        with torch.no_grad():
            model.get_input_embeddings().weight[known] = vectors[known]
    return model


def _token_fields(family: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The config fields that the tokenizer decides."""
    fields = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if family == "encoder":
        fields |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    if family in ("decoder", "seq2seq"):
        fields |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if family == "seq2seq":
        fields["decoder_start_token_id"] = tokenizer.bos_token_id
    return fields


def build_loop(
    recipe: Recipe, data: PreparedData, accelerator: Accelerator, *, seed: int, max_steps: int
) -> TrainingLoop:
    """Model, optimizers and batches, all from the seed; prepared for the devices at hand."""
    set_seed(seed)
    model = build_model(recipe, data, accelerator)
    optimizers = build_optimizers(model, recipe)
    model, *optimizers = accelerator.prepare(model, *optimizers)
    batches = _batch_source(recipe, data, data.train_tokens, "training", seed)
    return TrainingLoop(accelerator, model, optimizers, batches, recipe, max_steps)


def _batch_source(recipe: Recipe, data: PreparedData, file: Path, what: str, seed: int) -> BatchSource:
    facts = vocabulary_facts(data.tokenizer)
    block_size = max(stage.block_size for stage in recipe.stages)
    packed = open_packed(file, len(data.tokenizer), facts.cls_id, block_size=block_size, what=what)
    masking = recipe.masking if what == "training" else "token"
    return BatchSource(make_objective(recipe.objective, packed, facts, masking=masking), seed=seed)


def _start(output: Path, loop: TrainingLoop, data: PreparedData) -> Progress:
    """Loads the last checkpoint, or writes the one of step 0."""
    model, progress = loop.accelerator.unwrap_model(loop.model), Progress()
    checkpoint = latest_checkpoint(output)
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, model, loop.optimizers)
        logger.info("resuming from %s", checkpoint)
    elif loop.accelerator.is_main_process:
        save_checkpoint(output, progress, model, loop.optimizers, data.tokenizer)
    loop.accelerator.wait_for_everyone()
    return progress


def _validation_batches(recipe: Recipe, data: PreparedData) -> list[dict[str, torch.Tensor]]:
    """The same batches each time; few enough to keep."""
    source = _batch_source(recipe, data, data.validation_tokens, "validation", VALIDATION_SEED)
    block_size, size = recipe.stages[-1].block_size, recipe.micro_batch_size
    mask_rate = None if recipe.objective == "next_token" else VALIDATION_MASK_RATE
    return list(source.validation_batches(block_size, mask_rate=mask_rate, blocks=recipe.validation_blocks, size=size))


def _train(
    output: Path,
    loop: TrainingLoop,
    data: PreparedData,
    validation: list[dict[str, torch.Tensor]],
    progress: Progress,
    *,
    save_steps: int | None,
) -> None:
    """Runs the loop to its end, with validation, checkpoints and reports on the way."""
    accelerator, last = loop.accelerator, loop.max_steps
    save_every = save_steps or max(1, last // SAVES_PER_RUN)
    validate_every = max(1, last // VALIDATIONS_PER_RUN)
    metrics = output / "training" / "metrics.jsonl"
    reporter = Reporter(metrics, max_steps=last, progress=progress, speaks=accelerator.is_main_process)

    def after_step(progress: Progress, figures: dict) -> None:
        if progress.step % validate_every == 0 or progress.step == last:
            figures = figures | validate(loop.model, validation, accelerator)
        reporter.after_step(progress, figures)
        if (progress.step % save_every == 0 or progress.step == last) and accelerator.is_main_process:
            model = accelerator.unwrap_model(loop.model)
            save_checkpoint(output, progress, model, loop.optimizers, data.tokenizer)

    loop.run(progress, after_step)
    reporter.close()


def _measured_steps(settings: RunSettings, recipe: Recipe, data: PreparedData, accelerator: Accelerator) -> int:
    """How many steps fit into the minutes, found once: from then on the schedule is a function of the step."""
    minutes = settings.minutes or DEFAULT_MINUTES
    seconds = build_loop(recipe, data, accelerator, seed=settings.seed, max_steps=10**6).measure_step_seconds()
    steps = max(1, int(minutes * 60 / seconds))
    logger.info("%.3f s a step: %s steps in %g minutes", seconds, f"{steps:,}", minutes)
    return steps


def _record(settings: RunSettings, data: PreparedData, max_steps: int) -> dict:
    kept = {name: value for name, value in asdict(settings).items() if name not in ("output", "resume", "max_steps")}
    return kept | {"max_steps": max_steps, "corpus_fingerprint": data.facts["fingerprint"]}


def _write_record(output: Path, recorded: dict, recipe: Recipe) -> None:
    text = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
    atomic_write_text(output / RECIPE_FILE, text)
    atomic_write_json(output / "training" / "run.json", recorded)


def _read_record(output: Path) -> dict | None:
    """The run that lies there, or None if `output` is still empty: --resume may stand in a script from the start."""
    path = output / "training" / "run.json"
    if not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _require_same(recorded: dict, output: Path, settings: RunSettings, data: PreparedData, recipe: Recipe) -> None:
    """A run goes on with the text, the recipe, the seed and the length it began with."""
    if settings.seed not in (recorded["seed"], RunSettings.seed):
        raise UserError(f"--seed {settings.seed}: {output} began with {recorded['seed']}; leave it out to resume")
    if settings.max_steps not in (recorded["max_steps"], None):
        raise UserError(
            f"--max-steps {settings.max_steps}: {output} was planned for {recorded['max_steps']} steps, its learning "
            "rates too; leave it out to resume"
        )
    if recorded["corpus_fingerprint"] != data.facts["fingerprint"]:
        raise UserError(f"--corpus: not the text that {output} was trained on; give the same sources to resume")
    began_with = yaml.safe_load((output / RECIPE_FILE).read_text(encoding="utf-8"))
    changed = [name for name, value in asdict(recipe).items() if began_with.get(name) != value]
    if changed:
        raise UserError(
            f"{output / RECIPE_FILE}: this run began with another {', '.join(changed)}; "
            "resume without these flags, or start a new run"
        )


def _parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
