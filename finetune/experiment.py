"""One fine-tuning run from checks to files, top to bottom."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import transformers

from hf_tiny_transformer.runs import UserError, atomic_write_text, keep_freed_memory, require_free_output

from .baselines import Score, from_scratch, majority_class, tfidf
from .checkpoint import Checkpoint, build_model, open_checkpoint
from .report import Row, markdown_report, text_table
from .results import collect_results, write_result_directory
from .settings import FinetuneSettings
from .tasks import METRICS, find_task, load_task
from .train import EncodedSplits, TrainedSeed, encode_splits, train_seed


def run_experiment(settings: FinetuneSettings, command: str) -> dict:
    """Trains all seeds, prints the table, writes `settings.output`; returns what results.json holds.

    Raises:
        UserError: any input is wrong. All of it is checked before the first training step, and nothing is written.
    """
    _quieten()
    keep_freed_memory()
    clock = _Clock()
    output, report = _free_paths(settings)
    task = find_task(settings.task)
    score = partial(_score, task.metric)
    with clock.step("open the checkpoint"):
        checkpoint = open_checkpoint(
            settings.model, task.label_names, dropout=settings.dropout, max_length=settings.max_length
        )
        build_model(checkpoint, seed=0, from_scratch=settings.from_scratch)  # its errors now, not after the data
        pretraining = _pretraining_summary(settings.model)
    with clock.step("read and split the data"):
        splits = load_task(task, settings.data)
    with clock.step("tokenize"):
        data = encode_splits(splits, checkpoint)
    with clock.step("train and score all seeds"):
        best, row = _all_seeds(checkpoint, settings, data, score)
    comparison = []
    if settings.compare:
        with clock.step("majority class and TF-IDF"):
            comparison += [majority_class(splits, score), tfidf(splits, score)]
        with clock.step("same architecture from scratch"):
            comparison.append(from_scratch(checkpoint, settings, data, score))
    results = collect_results(
        task, settings, checkpoint, splits, best, row, comparison, pretraining, command, clock.seconds
    )
    write_result_directory(output, results, task, splits, best, checkpoint)
    rows = [*comparison, row]
    print(text_table(rows, task.metric, splits.reported_name))
    print(f"seed {best.result.seed}, the best on validation, is in {output}")
    if report is not None:
        atomic_write_text(report, markdown_report(results, rows))
        print(f"report: {report}")
    return results


def _all_seeds(
    checkpoint: Checkpoint, settings: FinetuneSettings, data: EncodedSplits, score: Score
) -> tuple[TrainedSeed, Row]:
    started = time.perf_counter()
    best, seed_results = None, []
    for seed in range(1, settings.seeds + 1):
        trained = train_seed(
            checkpoint, settings, data, score, seed, from_scratch=settings.from_scratch, title=f"seed {seed}"
        )
        seed_results.append(trained.result)
        if best is None or trained.result.validation > best.result.validation:
            best = trained
    path = Path(settings.model)
    name = path.resolve().name if path.is_dir() else settings.model
    name += ", from scratch" if settings.from_scratch else ", fine-tuned"
    return best, Row.of_seeds(name, seed_results, seconds=time.perf_counter() - started)


def _score(metric: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(METRICS[metric](labels, predictions))


def _free_paths(settings: FinetuneSettings) -> tuple[Path, Path | None]:
    """The two places to write to, after checking that a long run will not fail on them at its end."""
    output = require_free_output(settings.output)
    _require_writable_parent("--output", output)
    if settings.report is None:
        return output, None
    report = Path(settings.report)
    if report.is_dir():
        raise UserError(f"--report {report}: is a directory; name a file")
    _require_writable_parent("--report", report)
    return output, report


def _require_writable_parent(flag: str, path: Path) -> None:
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise UserError(f"{flag} {path}: {existing} is a file, not a directory; name another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{flag} {path}: no permission to write in {existing}; name another place")


def _pretraining_summary(model: str) -> dict | None:
    """What our pretraining wrote beside the model; None where the model comes from elsewhere."""
    path = Path(model) / "training" / "summary.json"
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON ({error}); mend or remove it") from None
    if not isinstance(summary, dict):
        raise UserError(f"{path}: not a JSON object; mend or remove it")
    return summary


def _quieten() -> None:
    """The libraries' notices and loading bars: our own lines say what matters, and errors are to be one line."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


class _Clock:
    """Seconds per named step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)
