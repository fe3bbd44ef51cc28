"""The result directory: the best seed's model, results.json, predictions.csv and a card."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from hf_tiny_transformer.runs import UserError, atomic_directory, atomic_write_json, atomic_write_text

from . import processes
from .checkpoint import Checkpoint
from .environment import device, versions
from .examples import Splits
from .report import Row, Spread
from .settings import FinetuneSettings
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
        "task": task.name,
        "kind": type(task.kind).__name__,
        "model": settings.model,
        "metric": task.kind.main,
        "reported_split": splits.headline,
        "validation": asdict(row.validation),
        "test": asdict(row.reported[key[0]][key[1]]),
        "scores": _score_records(row),
        "best_seed": best.result.seed,
        "seeds": [_seed_record(result, key) for result in row.results],
        "comparison": [_row_record(other, key) for other in comparison],
        "search": search,
        "settings": asdict(settings) | {"max_length": checkpoint.max_length},
        "parameters": best.model.num_parameters(),
        "data": splits.describe(),
        "pretraining": pretraining,
        "versions": versions(),
        "device": device(),
        "processes": processes.count(),
        "command": command,
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
    """
    try:
        with atomic_directory(output) as staging:
            best.model.save_pretrained(staging)
            checkpoint.tokenizer.save_pretrained(staging)
            atomic_write_json(staging / "results.json", results)
            _write_predictions(staging / "predictions.csv", task, data, best)
            for name, text in submission.items():
                (staging / "submission").mkdir(exist_ok=True)
                (staging / "submission" / name).write_text(text, encoding="utf-8")
            atomic_write_text(staging / "README.md", _card(results, task, best, splits, output.absolute().name))
    except OSError as error:
        raise UserError(f"--output {output}: can't be written ({error.strerror or error}); free or change it") from None


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


def _card(results: dict, task: Task, best: ScoredSeed, splits: Splits, name: str) -> str:
    ours = not type(best.model).__module__.startswith("transformers.")
    counts = results["data"]["counts"]
    table = [f"| validation | {counts['validation']} | {task.kind.main} | {Spread(**results['validation'])} |"]
    for split, metrics in results["scores"].items():
        table += [f"| {split} | {counts[split]} | {metric} | {Spread(**score)} |" for metric, score in metrics.items()]
    origin = "trained from scratch in the shape of" if results["settings"]["from_scratch"] else "fine-tuned from"
    lines = "\n".join(table)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task.kind.pipeline_tag,
        model_name=name,
        eval_results=_eval_results(results, task),
    )
    return f"""---
{data.to_yaml()}
---

# {name}

A model for {task.kind.describe()} with {results["parameters"]:,} parameters,
{origin} `{results["model"]}`.

Data: {task.about}; {counts["train"]} training rows.

| split | rows | metric | score, % |
| --- | ---: | --- | ---: |
{lines}

The figures are mean ± standard deviation over {len(results["seeds"])} seed(s). The weights here are those of seed \
{best.result.seed}, the best on validation; its {task.kind.main} on {splits.headline} is \
{100 * results["seeds"][best.result.seed - 1]["test"]:.2f}.

```python
{"import hf_tiny_transformer  # registers the model family" + chr(10) if ours else ""}\
{task.kind.usage(splits.train[0], f"PATH/TO/{name}")}
```

`results.json` holds settings, seeds, versions and times; `predictions.csv` what it answers to \
{" and ".join(splits.reported)}, row by row. Made by:

```
{results["command"]}
```
"""


def _eval_results(results: dict, task: Task) -> list[EvalResult]:
    """The scores of the weights beside the card, as the Hub reads them (model-index)."""
    best = results["seeds"][results["best_seed"] - 1]
    return [
        EvalResult(
            task_type=task.kind.pipeline_tag,
            dataset_type=task.dataset,
            dataset_name=task.about,
            dataset_config=task.dataset_config,
            dataset_split=split,
            metric_type=metric,
            metric_value=round(score, 6),
        )
        for split, metrics in best["scores"].items()
        for metric, score in metrics.items()
    ]
