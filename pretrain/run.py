"""One run, top to bottom: prepare the data, build the loop, train, save, publish."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_tiny_transformer.runs import (
    TerminatedError,
    UserError,
    keep_freed_memory,
    require_free_output,
)

from . import zero
from .build import build_loop, validation_batches
from .checkpoint import Progress, checkpoint_path, checkpoint_steps, latest_checkpoint, load_checkpoint
from .crew import Crew
from .initial import InitialModel, adapt_recipe, open_initial
from .loop import TrainingLoop
from .metrics import Reporter
from .prepare import PreparedData, prepare_data
from .publish import publish
from .recipe import Recipe
from .record import new_record, read_record, require_same, write_record
from .saving import Saver
from .schedule import plan_stages
from .settings import DEFAULT_MINUTES, RunSettings
from .speed import matrix_rate, step_flops
from .termination import TerminationWatch
from .validation import validate

VALIDATIONS_PER_RUN = 10

logger = logging.getLogger(__name__)


def pretrain(settings: RunSettings, recipe: Recipe) -> None:
    """Trains by `recipe` and leaves a model directory at `settings.output` (see README, "What a run leaves").

    Raises:
        UserError: bad input of any kind; nothing is left half-written.
        DivergedError: the loss is no number any more, or has exploded; the checkpoints stay.
        TerminatedError: SIGTERM came; a checkpoint of the step then computed is there.
    """
    settings.validate()
    output = Path(settings.output)
    recorded = read_record(output) if settings.resume else None
    initial = _initial_model(settings, output, recorded)
    if initial is not None:
        recipe = adapt_recipe(recipe, initial)
    recipe.validate()
    keep_freed_memory()
    accelerator = _accelerator(settings, output)
    if zero.is_used(accelerator):
        Crew.of(accelerator).together(lambda: zero.configure(accelerator, recipe))
    if recorded is None:
        require_free_output(output)
    start = time.perf_counter()
    data = prepare_data(settings.corpus, settings.text_field, recipe, accelerator, initial)

    build = partial(build_loop, recipe, data, accelerator, initial=initial, attention=settings.attention)
    if recorded is not None:
        require_same(recorded, output, settings, data, recipe)
        recorded["license"] = settings.license or recorded.get("license")
    else:
        max_steps = settings.max_steps or _measured_steps(settings, build)
        recorded = new_record(settings, data, max_steps)
    loop = build(seed=recorded["seed"], max_steps=recorded["max_steps"])
    loop.skip_bad_steps = settings.skip_bad_steps
    validation = validation_batches(recipe, data, settings.attention)
    where = f"{accelerator.num_processes} x {accelerator.device.type}, {accelerator.distributed_type.value}"
    logger.info("model: %s parameters, %d steps on %s", f"{_parameters(loop.model):,}", loop.max_steps, where)
    if accelerator.is_main_process:  # only now: whatever is wrong with the input has shown itself
        write_record(output, recorded, recipe)
    accelerator.wait_for_everyone()
    progress = _train(output, loop, data, validation, settings)
    if accelerator.is_main_process:
        timings = {"prepare": data.facts["prepare_seconds"], "train": round(progress.seconds, 1)}
        timings["all"] = round(time.perf_counter() - start, 1)
        step = progress.best_step if settings.save_best else progress.step
        publish(output, checkpoint_path(output, step), data, recipe, recorded, timings, accelerator.num_processes)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def _accelerator(settings: RunSettings, output: Path) -> Accelerator:
    try:
        return Accelerator(
            mixed_precision="bf16" if torch.cuda.is_available() else "no",
            log_with=settings.log_with,
            project_dir=output / "training",
        )
    except ImportError as error:  # of what the launch asks for
        raise UserError(str(error)) from None


def _initial_model(settings: RunSettings, output: Path, recorded: dict | None) -> InitialModel | None:
    """What --init names. A resumed run has it in its own first checkpoint, and needs the directory no more."""
    source = settings.init or (recorded or {}).get("init")
    if source is not None and recorded is not None and 0 in checkpoint_steps(output):
        source = checkpoint_path(output, 0)
    elif source is not None and settings.init is None and not Path(source).is_dir():  # its name only was written down
        raise UserError(f"{output}: began with the model {source}; name its directory again with --init to resume")
    return None if source is None else open_initial(source, trust_remote_code=settings.trust_remote_code)


def _train(
    output: Path,
    loop: TrainingLoop,
    data: PreparedData,
    validation: list[dict[str, torch.Tensor]],
    settings: RunSettings,
) -> Progress:
    """Runs the loop from the last checkpoint to its end, with validation, checkpoints and reports on the way."""
    accelerator, last = loop.accelerator, loop.max_steps
    progress = Progress()
    saver = Saver(output, loop, data.tokenizer, settings)
    checkpoint = latest_checkpoint(output)
    if checkpoint is None:
        saver.save(progress)
    else:
        progress = load_checkpoint(checkpoint, accelerator, loop.model, loop.optimizers)
        logger.info("resuming from %s", checkpoint)
    accelerator.wait_for_everyone()
    accelerator.init_trackers(output.name)
    plans = plan_stages(loop.recipe, last)
    reporter = Reporter(
        output / "training" / "metrics.jsonl",
        max_steps=last,
        max_tokens=sum(p.stage.batch_size * p.stage.block_size * (p.last - p.first) for p in plans),
        progress=progress,
        speaks=accelerator.is_main_process,
        peak_share=_peak_share(loop),
        track=accelerator.log,
    )
    validate_every = max(1, last // VALIDATIONS_PER_RUN)

    def after_step(progress: Progress, figures: dict) -> None:
        if progress.step % validate_every == 0 or progress.step == last:
            figures = figures | validate(loop.model, validation, accelerator)
        reporter.after_step(progress, figures)
        saver.after_step(progress, figures)

    with TerminationWatch() as watch:
        loop.stop_requested = lambda: watch.requested
        finished = loop.run(progress, after_step)
        if not finished:
            saver.save(progress)
            raise TerminatedError(f"SIGTERM: saved at step {progress.step} of {last}; go on with --resume")
    reporter.close()
    return progress


def _peak_share(loop: TrainingLoop) -> Callable[[float], float]:
    """Tokens a second, over all processes, to the share of what they could multiply; by the last stage's shape."""
    accelerator, stage = loop.accelerator, loop.recipe.stages[-1]
    predicted = round(stage.batch_size * stage.block_size * (stage.mask_rate or 1.0))
    model = accelerator.unwrap_model(loop.model)
    flops = step_flops(model, rows=stage.batch_size, length=stage.block_size, predicted=predicted)
    possible = matrix_rate(accelerator.device) * accelerator.num_processes
    return lambda rate: rate * flops / (stage.batch_size * stage.block_size) / possible


def _measured_steps(settings: RunSettings, build: Callable[..., TrainingLoop]) -> int:
    """How many steps fit into the minutes, found once: from then on the schedule is a function of the step."""
    minutes = settings.minutes or DEFAULT_MINUTES
    trial = build(seed=settings.seed, max_steps=10**6)
    seconds = trial.measure_step_seconds()
    trial.accelerator.free_memory()  # it would hold on to the trial's model
    steps = max(1, int(minutes * 60 / seconds))
    logger.info("%.3f s a step: %s steps in %g minutes", seconds, f"{steps:,}", minutes)
    return steps


def _parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
