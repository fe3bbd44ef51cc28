"""A seed is a directory: Trainer's checkpoints while it trains, its weights and result.json when it is done."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from hf_tiny_transformer.common.checkpoints import require_finite
from hf_tiny_transformer.common.errors import DivergedError, UserError, first_line, one_line
from hf_tiny_transformer.common.files import atomic_write_json, disk_errors, flush, read_json, sha256
from hf_tiny_transformer.common.processes import is_main, say, wait_for_everyone, world_size

from .data import HELD_OUT_SEED
from .kinds import EncodedSplit, require_finite_outputs
from .trainer import DIVERGED, FineTuner, Training, epoch_records, redo, remove_checkpoints, with_adapters

Reported = dict[str, EncodedSplit]
RESULT, WEIGHTS = "result.json", "model.safetensors"
RATE_SPAN = 10.0  # a search goes from a tenth of --learning-rate to ten times it
BATCH_SIZES = (8, 16, 32, 64)  # of a search


@dataclass(frozen=True)
class SeedResult:
    """One seed."""

    seed: int
    best_epoch: int  # from 1
    validation: float  # the main score of the best epoch
    seconds: float
    epochs: list[dict[str, Any]]
    scores: dict[str, dict[str, float]] = field(default_factory=dict)  # by reported split and metric


def train_seed(training: Training, directory: Path, seed: int, title: str) -> SeedResult:
    """Train a seed in its directory, or return the result that is there.

    On CPU, equal arguments give equal bits, also if the training was killed and resumed at any instant. The seed is
    that of the new head's weights, the order, dropout and masking; `title` begins each line of progress.

    Raises:
        UserError: The disk is full.
        DivergedError: The loss or the weights are not finite.
    """
    if (finished := read_result(directory)) is not None:
        return finished
    pretrained, adapted = training.build(seed), None
    if training.settings.lora is not None:
        adapted = with_adapters(pretrained, training.settings.lora)
    model = pretrained if adapted is None else adapted.get_base_model()
    with disk_errors(directory):
        trainer = FineTuner(training, model, directory, seed, title)
        trainer.train_or_resume()
        epochs = epoch_records(training.kind, trainer.state)
        best = max(epochs, key=lambda epoch: epoch["validation"])  # the first among equals
        seconds = round(sum(epoch["seconds"] for epoch in epochs), 2)
        result = SeedResult(seed, best["epoch"], best["validation"], seconds, epochs)
        if is_main():
            model = model if adapted is None else adapted.merge_and_unload()
            require_finite(model.state_dict(), title, DIVERGED)
            save_model(model, str(directory / WEIGHTS))
            flush(directory / WEIGHTS)
            write_result(directory, result)
            remove_checkpoints(directory)
    wait_for_everyone()
    return result


def train_seeds(training: Training, directory: Path, reported: Reported, title: str = "") -> list[SeedResult]:
    """Train and score all seeds, each in its directory; the weights of the best one on validation are kept."""
    results: list[SeedResult] = []
    for seed in range(1, training.settings.seeds + 1):
        folder, name = directory / str(seed), f"{title}seed {seed}"
        result = train_seed(training, folder, seed, name)
        if result.scores:
            say(f"finished before: {name}")
        else:
            result = score_seed(training, folder, result, reported)
        results.append(result)
        for each in results:
            if each is not best_of(results):
                discard_weights(directory / str(each.seed))
    return results


def score_seed(training: Training, directory: Path, result: SeedResult, reported: Reported) -> SeedResult:
    """Score the reported splits with a trained seed's weights, and add the scores to its result."""
    started = time.perf_counter()
    model = load_seed(training, directory)
    scores = {name: training.kind.scores(outputs_of(training, model, split), split) for name, split in reported.items()}
    seconds = round(result.seconds + time.perf_counter() - started, 2)
    result = dataclasses.replace(result, scores=scores, seconds=seconds)
    if is_main():
        write_result(directory, result)
    wait_for_everyone()
    return result


def best_of(results: Sequence[SeedResult]) -> SeedResult:
    """Return the best seed on validation, the first among equals."""
    return max(results, key=lambda result: result.validation)


def load_seed(training: Training, directory: Path) -> PreTrainedModel:
    """Return the model of a trained seed."""
    model, path = training.build(0), directory / WEIGHTS
    try:
        load_model(model, path)
    except Exception as error:  # safetensors and torch have their own types
        raise UserError(f"{path}: cannot be read ({first_line(error)}); {redo(directory)}") from None
    return model


def outputs_of(training: Training, model: PreTrainedModel, split: EncodedSplit) -> np.ndarray:
    """Return the model's output for each of `split.rows`, in their order."""
    with tempfile.TemporaryDirectory() as scratch:  # Trainer wants a directory
        outputs = FineTuner(dataclasses.replace(training, validation=split), model, Path(scratch)).predictions()
    return require_finite_outputs(outputs)


def read_result(directory: Path) -> SeedResult | None:
    """Return the result in a seed's directory, or None if it is not trained; damaged files are trained again."""
    if not (directory / RESULT).is_file():
        return None
    result, problem = None, ""
    try:
        content, weights = read_json(directory / RESULT, "trained again", checksum=True), directory / WEIGHTS
        digest, result = content.pop(WEIGHTS), SeedResult(**content)
        if digest is None:
            pass  # the weights were discarded
        elif weights.is_file() and sha256(weights) != digest:
            problem = f"{weights}: damaged (its checksum differs); trained again"
        elif not weights.is_file():
            problem = f"{weights}: no such file; trained again"
    except (UserError, TypeError, KeyError) as error:
        problem = one_line(error)
    wait_for_everyone()
    if problem:
        say(problem)
        if is_main():
            shutil.rmtree(directory)
        wait_for_everyone()
    return None if problem else result


def write_result(directory: Path, result: SeedResult) -> None:
    """Write a seed's result, with the checksum of its weights; this makes it count as trained."""
    content = {WEIGHTS: sha256(directory / WEIGHTS), **dataclasses.asdict(result)}
    atomic_write_json(directory / RESULT, content, checksum=True)


def discard_weights(directory: Path) -> None:
    """Remove a seed's weights once it is scored and not the best; the result records this first."""
    if is_main() and (directory / WEIGHTS).is_file():
        content = read_json(directory / RESULT, "trained again", checksum=True)
        atomic_write_json(directory / RESULT, content | {WEIGHTS: None}, checksum=True)
        (directory / WEIGHTS).unlink()


def search(training: Training, directory: Path) -> tuple[Training, dict[str, Any], float]:
    """Search learning rate, batch size and epochs on validation, with seed 1; the first trial is the settings given.

    `Trainer.hyperparameter_search` starts the same study of Optuna, but its objective is the score of the last epoch
    rather than of the best one, and a killed search could not be resumed. Here each trial is a seed's directory in
    `directory`; a resumed search makes the same choices and finds the results of finished trials.

    Returns:
        The training with the best settings, the trials for the report, and the seconds they took.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given, results = training.settings, []
    rates = given.learning_rate / RATE_SPAN, min(1.0, given.learning_rate * RATE_SPAN)
    sizes = sorted({size for size in BATCH_SIZES if size % world_size() == 0} | {given.batch_size})

    def objective(trial: optuna.Trial) -> float:
        tried = training.using(
            learning_rate=trial.suggest_float("learning_rate", *rates, log=True),
            batch_size=trial.suggest_categorical("batch_size", sizes),
            epochs=trial.suggest_int("epochs", 1, 2 * given.epochs),
        )
        folder, chosen = directory / str(trial.number + 1), tried.settings
        title = f"trial {folder.name}/{given.search}, rate {chosen.learning_rate:.1e}, batch {chosen.batch_size}"
        try:
            results.append(train_seed(tried, folder, 1, title))
        except DivergedError as error:
            say(f"{title}: {error}")
            raise optuna.TrialPruned from None
        discard_weights(folder)
        return results[-1].validation

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=HELD_OUT_SEED))
    study.enqueue_trial({name: getattr(given, name) for name in ("learning_rate", "batch_size", "epochs")})
    study.optimize(objective, n_trials=given.search)
    if not results:
        raise DivergedError(f"--search {given.search}: all trials diverged; {DIVERGED}")
    record = {
        "chosen": study.best_params,
        "validation": study.best_value,
        "trials": [trial.params | {"validation": trial.value} for trial in study.trials],
    }
    return training.using(**study.best_params), record, sum(result.seconds for result in results)
