"""The result directory: the best seed's model, results.json, predictions.csv and a card."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hf_tiny_transformer.card_figures import training_seconds
from hf_tiny_transformer.cards import estimate_energy, public_name
from hf_tiny_transformer.foreign_code import strip_loaded
from hf_tiny_transformer.runs import RunError, UserError, atomic_directory

from . import processes
from .card import write_card
from .checkpoint import Checkpoint
from .environment import device, versions
from .examples import Splits
from .report import Row
from .settings import FinetuneSettings, public_settings
from .tasks import Task
from .train import EncodedSplits, ScoredSeed, SeedResult


def collect_results(
    task: Task,
    settings: FinetuneSettings,
    checkpoint: Checkpoint,
    splits: Splits,
    best: ScoredSeed,
    row: Row,
    comparison: Sequence[Row],
    search: dict | None,
    pretraining: dict | None,
    command: str,
    timings: dict[str, float],
) -> dict:
    """What results.json holds; 1 is a perfect score, times are in seconds. `validation` and `test` are the main
    metric's, `test` on the first reported split; `scores` has every reported split and metric."""
    key = splits.headline, task.kind.main
    return {
        "task": public_name(task.name),
        "kind": type(task.kind).__name__,
        "model": public_name(settings.model),
        "metric": task.kind.main,
        "reported_split": splits.headline,
        "validation": asdict(row.validation),
        "test": asdict(row.reported[key[0]][key[1]]),
        "scores": _score_records(row),
        "best_seed": best.result.seed,
        "seeds": [_seed_record(result, key) for result in row.results],
        "comparison": [_row_record(other, key) for other in comparison],
        "search": search,
        "settings": public_settings(settings) | {"max_length": checkpoint.max_length},
        "parameters": best.model.num_parameters(),
        "data": splits.describe(),
        "pretraining": pretraining,
        "versions": versions(),
        "device": device(),
        "processes": processes.count(),
        "command": command,
        "energy": estimate_energy(training_seconds(timings), processes.count()),
        "timings": timings,
        "seconds": round(sum(timings.values()), 2),
    }


def write_result_directory(
    output: Path,
    results: dict,
    task: Task,
    splits: Splits,
    data: EncodedSplits,
    best: ScoredSeed,
    checkpoint: Checkpoint,
    submission: dict[str, str],
) -> None:
    """All files or none. `submission` is the content of each file of a GLUE submission by name, if one is made.

    Raises:
        UserError: the disk refuses.
        RunError: the code that the card would show fails; all but the card is there, for it took long to make.
    """
    failure = None
    try:
        with atomic_directory(output) as staging:
            strip_loaded(checkpoint.source, model=best.model)
            best.model.save_pretrained(staging)
            checkpoint.tokenizer.save_pretrained(staging)
            _write_predictions(staging / "predictions.csv", task, data, best)
            for name, text in submission.items():
                (staging / "submission").mkdir(exist_ok=True)
                (staging / "submission" / name).write_text(text, encoding="utf-8")
            try:
                write_card(staging, results, task, best, checkpoint, splits.train[0], name=output.absolute().name)
            except RunError as error:
                failure = error
    except OSError as error:
        raise UserError(f"--output {output}: can't be written ({error.strerror or error}); free or change it") from None
    if failure is not None:
        raise RunError(f"{output}: {failure}") from failure


def _seed_record(result: SeedResult, headline: tuple[str, str]) -> dict:
    record = asdict(result)
    record["scores"] = record.pop("reported")
    return record | {"test": result.reported[headline[0]][headline[1]]}


def _score_records(row: Row) -> dict:
    return {
        split: {metric: asdict(spread) for metric, spread in metrics.items()} for split, metrics in row.reported.items()
    }


def _row_record(row: Row, headline: tuple[str, str]) -> dict:
    return {
        "name": row.name,
        "choice": row.choice,
        "validation": asdict(row.validation),
        "test": asdict(row.reported[headline[0]][headline[1]]),
        "scores": _score_records(row),
        "seeds": [_seed_record(result, headline) for result in row.results],
        "seconds": row.seconds,
    }


def _write_predictions(path: Path, task: Task, data: EncodedSplits, best: ScoredSeed) -> None:
    """The rows of each split, in its order; the column `split` is there where several are reported."""
    texts = task.text_columns if len(task.text_columns) > 1 else ("text",)
    several = len(data.reported) > 1
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        for number, (name, split) in enumerate(data.reported.items()):
            columns = task.kind.prediction_table(best.outputs[name], split, texts)
            if number == 0:
                writer.writerow([*(["split"] if several else []), *columns])
            for row in zip(*columns.values(), strict=True):
                writer.writerow([*([name] if several else []), *row])
