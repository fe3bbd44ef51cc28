"""One run, top to bottom: prepare the data, build the loop, train, save, publish."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from transformers import PreTrainedModel

from hf_tiny_transformer.common.environment import keep_freed_memory, supports_bf16, use_deterministic_kernels
from hf_tiny_transformer.common.errors import StoppedError, UserError, on_stop
from hf_tiny_transformer.common.files import (
    damage,
    disk_errors,
    only_process,
    require_free_output,
    require_space,
    require_writable,
)
from hf_tiny_transformer.common.processes import is_main, world_size

from . import varlen
from .batches import Batch, batch_source, validation_batches
from .checkpoint import Saver, checkpoint_path, checkpoint_steps, intact_checkpoint, load_checkpoint
from .data.prepare import PreparedData, prepare_data
from .data.team import Team
from .initial import InitialModel, adapt_recipe, open_initial
from .loop import Progress, TrainingLoop
from .metrics import METRICS_FILE, Reporter
from .model import build_model
from .optimizer import build_optimizers
from .publish import publish
from .recipe import Recipe
from .settings import DEFAULT_MINUTES, RUN_FILE, RunRecord, RunSettings, read_record, require_same
from .validation import validate

VALIDATIONS_PER_RUN = 10

logger = logging.getLogger(__name__)


def pretrain(settings: RunSettings, recipe: Recipe) -> None:
    """Train by `recipe` and write a model directory at `settings.output`.

    Raises:
        UserError: The input is bad; nothing is left half-written.
        DivergedError: The loss is not finite or has exploded, or the weights are not finite; the checkpoints stay.
        StoppedError: A signal arrived; the current step is saved.
    """
    settings.validate()
    output = Path(settings.output)

    def stop(number: int) -> None:
        before = "no step was trained; repeat the command: finished parts of the corpus are in the cache"
        raise StoppedError(number, "continue with --resume" if (output / RUN_FILE).is_file() else before)

    with only_process(output, "--output") if is_main() else nullcontext(), disk_errors(output), on_stop(stop):
        _pretrain(settings, recipe, output)


def _pretrain(settings: RunSettings, recipe: Recipe, output: Path) -> None:
    record = read_record(output) if settings.resume else None
    keep_freed_memory()
    if settings.deterministic or (record is not None and record.deterministic):
        use_deterministic_kernels()
    recipe.validate()
    accelerator = _accelerator(settings, output, recipe, record)
    first = None
    if record is None:
        require_free_output(output)
    else:
        require_writable("--output", output)
        first = Team().main_only(lambda: intact_checkpoint(output, needs_best=settings.save_best))
    initial = _initial_model(settings, output, record)
    if initial is not None:
        recipe = adapt_recipe(recipe, initial)
        recipe.validate()
    start = time.perf_counter()
    data = prepare_data(settings.corpus, settings.text_field, recipe, initial, exclude=output)

    build = partial(build_loop, recipe, data, accelerator, settings, initial=initial)
    fingerprint = data.facts["fingerprint"]
    if record is not None:
        require_same(record, output, settings, fingerprint, recipe)
        record.license = settings.license or record.license
    else:
        record = RunRecord.of(settings, settings.max_steps or _measured_steps(settings, build), fingerprint)
    loop = build(seed=record.seed, max_steps=record.max_steps)
    loop.skip_bad_steps = settings.skip_bad_steps
    validation = validation_batches(recipe, data, accelerator.device, bounds=loop.batches.bounds)
    parameters = sum(p.numel() for p in loop.model.parameters())
    record.precision = precision_of(accelerator)
    logger.info("model: %s parameters, %d steps on %s", f"{parameters:,}", loop.max_steps, _describe(loop))
    if accelerator.is_main_process:  # not earlier: by now all input has been checked
        # weights and up to two moments, in two checkpoints (before one is deleted) and in the published model
        require_space(output, 4 * parameters * (3 * 2 + 1), "two checkpoints and the model")
        record.write(output, recipe)
    accelerator.wait_for_everyone()
    progress = _train(output, loop, data, validation, settings, first)
    if accelerator.is_main_process:
        timings = {"prepare": data.facts["prepare_seconds"], "train": round(progress.seconds, 1)}
        timings["all"] = round(time.perf_counter() - start, 1)
        path = checkpoint_path(output, progress.best_step if settings.save_best else progress.step)
        if (problem := damage(path)) is not None:
            raise UserError(f"{path}: {problem}; --resume continues at the checkpoint before it")
        publish(output, path, data, recipe, record, timings, accelerator.num_processes)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def build_loop(
    recipe: Recipe,
    data: PreparedData,
    accelerator: Accelerator,
    settings: RunSettings,
    *,
    seed: int,
    max_steps: int,
    initial: InitialModel | None = None,
) -> TrainingLoop:
    """Return model, optimizers and batches, all from the seed, prepared for the devices."""
    set_seed(seed)
    model = build_model(recipe, data, seed=seed, initial=initial, attention=settings.attention)
    bounds = model.config._attn_implementation == varlen.NAME
    if settings.compile if settings.compile is not None else compiles_well(accelerator, model):
        torch._dynamo.config.recompile_limit = 4 * len(recipe.stages) + 4  # training, validation, their last batches
        model.compile(dynamic=False)  # in place: a wrapper would hide DDP's no_sync
    model, *optimizers = accelerator.prepare(model, *build_optimizers(model, recipe))
    batches = batch_source(recipe, data, "train", seed, bounds=bounds)
    return TrainingLoop(accelerator, model, optimizers, batches, recipe, max_steps)


def compiles_well(accelerator: Accelerator, model: PreTrainedModel) -> bool:
    """Return whether a model is compiled by default: on a GPU, unless its shapes change or its weights are sharded."""
    return accelerator.device.type == "cuda" and not model.config.is_encoder_decoder and not accelerator.is_fsdp2


def _describe(loop: TrainingLoop) -> str:
    """Describe how a loop computes, for the log."""
    accelerator, model = loop.accelerator, loop.accelerator.unwrap_model(loop.model)
    parts = [f"{accelerator.num_processes} x {accelerator.device.type}"]
    parts += [accelerator.distributed_type.value] if accelerator.num_processes > 1 else []
    parts += [precision_of(accelerator)]
    parts += [model.config._attn_implementation] + (["compiled"] if model._compiled_call_impl else [])
    return ", ".join(parts)


def precision_of(accelerator: Accelerator) -> str:
    """Return fp32 or bf16."""
    return "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision


def _uses_bf16(settings: RunSettings, record: RunRecord | None) -> bool:
    """Return the choice of the settings, or what suits the device; a run that is resumed on a CPU keeps its own."""
    if settings.precision is not None:
        return settings.precision == "bf16"
    if torch.cuda.is_available():
        return supports_bf16()
    return record is not None and record.precision == "bf16"


def _accelerator(settings: RunSettings, output: Path, recipe: Recipe, record: RunRecord | None) -> Accelerator:
    try:
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else processes without a GPU would not find each other
            mixed_precision="bf16" if _uses_bf16(settings, record) else "no",
            dynamo_backend="no",  # build_loop compiles
            log_with=settings.log_with,
            project_dir=output / "training",
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
        )
    except ImportError as error:  # a package that the launch configuration requires
        raise UserError(str(error)) from None
    if accelerator.num_processes != world_size():
        problem = f"{world_size()} processes were started, but this one finds {accelerator.num_processes}"
        raise UserError(f"{problem}; use a file of pretrain/launch that fits this machine, see docs/scaling-out.md")
    if (rows := min(stage.batch_size for stage in recipe.stages)) < accelerator.num_processes:
        raise UserError(
            f"recipe field stages[].batch_size is {rows}, but there are {accelerator.num_processes} processes, and "
            "each needs a row; use fewer processes or a larger batch"
        )
    return accelerator


def _initial_model(settings: RunSettings, output: Path, record: RunRecord | None) -> InitialModel | None:
    """Open the model of --init. A resumed run has it in its own first checkpoint and no longer needs the directory."""
    source: str | Path | None = settings.init or (record.init if record else None)
    if source is not None and record is not None and 0 in checkpoint_steps(output):
        source = checkpoint_path(output, 0)
    elif source is not None and settings.init is None and not Path(source).is_dir():  # the record has only its name
        raise UserError(f"{output}: was started from the model {source}; name its directory with --init to resume")
    return None if source is None else open_initial(source, trust_remote_code=settings.trust_remote_code)


def _train(
    output: Path,
    loop: TrainingLoop,
    data: PreparedData,
    validation: list[Batch],
    settings: RunSettings,
    first: int | None,
) -> Progress:
    """Run the loop from the checkpoint of step `first` to its end, with validations, checkpoints and reports."""
    accelerator, last = loop.accelerator, loop.max_steps
    progress = Progress()
    saver = Saver(output, settings, loop, data.tokenizer)
    path = checkpoint_path(output, first or 0)
    if first is not None:
        progress = load_checkpoint(path, loop)
        logger.info("resuming from %s", path)
    else:
        saver.save(progress)
    accelerator.wait_for_everyone()
    accelerator.init_trackers(output.name)
    reporter = Reporter(output, loop, progress, path / METRICS_FILE.name)
    validate_every = max(1, last // VALIDATIONS_PER_RUN)

    def after_step(progress: Progress, figures: dict[str, float]) -> None:
        if progress.step % validate_every == 0 or progress.step == last:
            figures = figures | validate(loop.model, validation, accelerator)
        reporter.after_step(progress, figures)
        saver.after_step(progress, figures)

    arrived: list[int] = []  # signals, which a machine that is reclaimed sends too, are only noted
    loop.stop_requested = lambda: bool(arrived)
    with on_stop(arrived.append):
        finished = loop.run(progress, after_step)
        if not finished:
            saver.save(progress)
    if arrived or not finished:
        number = arrived[0] if arrived else signal.SIGTERM  # another process received it
        raise StoppedError(number, f"saved at step {progress.step} of {last}; continue with --resume")
    return progress


def _measured_steps(settings: RunSettings, build: Callable[..., TrainingLoop]) -> int:
    """Return the steps that fit into the minutes. They are fixed once, so that the schedule depends on steps alone."""
    minutes = settings.minutes or DEFAULT_MINUTES
    trial = build(seed=settings.seed, max_steps=10**6)
    seconds = trial.measure_step_seconds()
    trial.accelerator.free_memory()  # of the trial's model
    steps = max(1, int(minutes * 60 / seconds))
    logger.info("%.3f s per step: %s steps in %g minutes", seconds, f"{steps:,}", minutes)
    return steps
