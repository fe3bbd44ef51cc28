"""The result directory: the best seed's model, results.json, predictions.csv and a card."""

from __future__ import annotations

import csv
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import sklearn
import tokenizers
import torch
import transformers

from hf_tiny_transformer.runs import UserError, atomic_directory, atomic_write_json, atomic_write_text

from .checkpoint import Checkpoint
from .examples import Example, Splits
from .report import Row, Spread
from .settings import FinetuneSettings
from .tasks import Task
from .train import SeedResult, TrainedSeed


def collect_results(
    task: Task,
    settings: FinetuneSettings,
    checkpoint: Checkpoint,
    splits: Splits,
    best: TrainedSeed,
    row: Row,
    comparison: Sequence[Row],
    pretraining: dict | None,
    command: str,
    timings: dict[str, float],
) -> dict:
    """What results.json holds; scores are between 0 and 1, times in seconds."""
    return {
        "task": task.name,
        "model": settings.model,
        "metric": task.metric,
        "reported_split": splits.reported_name,
        "validation": asdict(row.validation),
        "test": asdict(row.reported),
        "best_seed": best.result.seed,
        "seeds": [_seed_record(result) for result in row.results],
        "comparison": [_row_record(other) for other in comparison],
        "settings": asdict(settings) | {"max_length": checkpoint.max_length},
        "parameters": best.model.num_parameters(),
        "data": splits.describe(),
        "pretraining": pretraining,
        "versions": _versions(),
        "device": _device(),
        "command": command,
        "timings": timings,
        "seconds": round(sum(timings.values()), 2),
    }


def write_result_directory(
    output: Path, results: dict, task: Task, splits: Splits, best: TrainedSeed, checkpoint: Checkpoint
) -> None:
    """All files or none.

    Raises:
        UserError: the disk refuses.
    """
    try:
        with atomic_directory(output) as staging:
            best.model.save_pretrained(staging)
            checkpoint.tokenizer.save_pretrained(staging)
            atomic_write_json(staging / "results.json", results)
            _write_predictions(staging / "predictions.csv", task, splits.reported, best.probabilities)
            atomic_write_text(staging / "README.md", _card(results, task, best, splits, output.absolute().name))
            for file in staging.iterdir():
                file.chmod(0o644)  # safetensors writes 0600, which would follow the model wherever it is copied
    except OSError as error:
        raise UserError(f"--output {output}: can't be written ({error.strerror or error}); free or change it") from None


def _seed_record(result: SeedResult) -> dict:
    record = asdict(result)
    record["test"] = record.pop("reported")
    return record


def _row_record(row: Row) -> dict:
    return {
        "name": row.name,
        "choice": row.choice,
        "validation": asdict(row.validation),
        "test": asdict(row.reported),
        "seeds": [_seed_record(result) for result in row.results],
        "seconds": row.seconds,
    }


def _write_predictions(path: Path, task: Task, examples: Sequence[Example], probabilities: np.ndarray) -> None:
    """One row per example, in the split's order; `probability` is that of the prediction."""
    columns = task.text_columns if len(task.text_columns) > 1 else ("text",)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["index", *columns, "label", "prediction", "probability"])
        for index, (example, row) in enumerate(zip(examples, probabilities, strict=True)):
            choice = int(row.argmax())
            names = task.label_names[example.label], task.label_names[choice]
            writer.writerow([index, *example.texts, *names, f"{row[choice]:.6f}"])


def _card(results: dict, task: Task, best: TrainedSeed, splits: Splits, name: str) -> str:
    ours = not type(best.model).__module__.startswith("transformers.")
    scores = {"validation": results["validation"], results["reported_split"]: results["test"]}
    table = "\n".join(
        f"| {split} | {results['data']['counts'][split]} | {Spread(**score)} |" for split, score in scores.items()
    )
    origin = "trained from scratch in the shape of" if results["settings"]["from_scratch"] else "fine-tuned from"
    return f"""---
library_name: transformers
pipeline_tag: text-classification
---

# {name}

A text classifier ({", ".join(task.label_names)}) with {results["parameters"]:,} parameters,
{origin} `{results["model"]}`.

Data: {task.about}; {results["data"]["counts"]["train"]} training rows.

| split | rows | {task.metric}, % |
| --- | ---: | ---: |
{table}

The figures are mean ± standard deviation over {len(results["seeds"])} seed(s). The weights here are those of seed \
{best.result.seed}, the best on validation; it scores {100 * best.result.reported:.2f} on {results["reported_split"]}.

```python
{"import hf_tiny_transformer  # registers the model family" + chr(10) if ours else ""}from transformers import pipeline

classify = pipeline("text-classification", model="PATH/TO/{name}")
print(classify({splits.train[0].texts[0]!r}))
```

`results.json` holds settings, seeds, versions and times; `predictions.csv` the {results["reported_split"]} split, row \
by row. Made by:

```
{results["command"]}
```
"""


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "scikit-learn": sklearn.__version__,
    }


def _device() -> str:
    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return f"{torch.cuda.get_device_name()}, {'bf16' if bf16 else 'fp32'}"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} thread(s), fp32"
