"""A small search for learning rate, batch size and epochs (Optuna, tree-structured Parzen estimator)."""

from __future__ import annotations

import dataclasses

import optuna

from . import processes
from .checkpoint import Checkpoint
from .examples import HELD_OUT_SEED
from .kinds.base import EncodedSplit, Kind
from .resume import Unfinished
from .settings import FinetuneSettings
from .train import EncodedSplits, train_seed

RATE_SPAN = 10.0  # the search goes from a tenth of --learning_rate to ten times it
BATCH_SIZES = (8, 16, 32, 64)


def search(
    kind: Kind,
    checkpoint: Checkpoint,
    settings: FinetuneSettings,
    train: EncodedSplit,
    validation: EncodedSplit,
    unfinished: Unfinished,
) -> tuple[FinetuneSettings, dict, float]:
    """Trains `settings.search` times with seed 1 and takes what was best on `validation`; the reported splits are not
    even passed in. The first trial is `settings` itself. Returns the settings to go on with, all trials, and the
    seconds they took. A search that is resumed makes the same choices again, but does not train what an earlier part of
    it trained."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    data = EncodedSplits(train, validation, reported={})
    rates = settings.learning_rate / RATE_SPAN, min(1.0, settings.learning_rate * RATE_SPAN)
    sizes = sorted({size for size in BATCH_SIZES if size % processes.count() == 0} | {settings.batch_size})

    done = (unfinished.load("trials") or {"facts": {"validation": [], "seconds": []}})["facts"]
    earlier = len(done["validation"])

    def objective(trial: optuna.Trial) -> float:
        chosen = {
            "learning_rate": trial.suggest_float("learning_rate", *rates, log=True),
            "batch_size": trial.suggest_categorical("batch_size", sizes),
            "epochs": trial.suggest_int("epochs", 1, 2 * settings.epochs),
        }
        if trial.number < earlier:
            return done["validation"][trial.number]
        tried = dataclasses.replace(settings, **chosen)
        title = f"trial {trial.number + 1}/{settings.search}, rate {tried.learning_rate:.1e}, batch {tried.batch_size}"
        trained = train_seed(kind, checkpoint, tried, data, seed=1, title=title, unfinished=unfinished)
        done["validation"].append(trained.validation)
        done["seconds"].append(trained.seconds)
        unfinished.save("trials", done)
        return trained.validation

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=HELD_OUT_SEED))
    study.enqueue_trial({name: getattr(settings, name) for name in ("learning_rate", "batch_size", "epochs")})
    study.optimize(objective, n_trials=settings.search)
    record = {
        "chosen": study.best_params,
        "validation": study.best_value,
        "trials": [trial.params | {"validation": trial.value} for trial in study.trials],
    }
    return dataclasses.replace(settings, **study.best_params), record, sum(done["seconds"])
