"""One fine-tuning run from checks to files, top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_tiny_transformer.runs import UserError, atomic_write_text, keep_freed_memory, require_free_output

from . import processes
from .baselines import from_scratch
from .checkpoint import Checkpoint, build_model, open_checkpoint
from .environment import quieten, require_writable_parent
from .kinds.base import Kind
from .report import Row, markdown_report, table_cells, text_table
from .results import collect_results, write_result_directory
from .search import search
from .settings import FinetuneSettings
from .submission import answer_test
from .tasks import open_task
from .train import EncodedSplits, ScoredSeed, encode_splits, score_reported, train_seed


def run_experiment(settings: FinetuneSettings, command: str, *, baselines: bool = False) -> dict:
    """Trains all seeds, prints the table, writes `settings.output`; returns what results.json holds. Of several
    processes one prints and writes. `baselines` asks for those that are quick even without `settings.compare`.

    Raises:
        UserError: any input is wrong. All of it is checked before the first training step, and nothing is written.
    """
    quieten()
    keep_freed_memory()
    clock = _Clock()
    output, report = free_paths(settings)
    with clock.step("read and split the data"):
        task, splits = open_task(settings)
    with clock.step("open the checkpoint"):
        checkpoint = open_checkpoint(
            settings.model, task.kind, dropout=settings.dropout, max_length=settings.max_length
        )
        build_model(checkpoint, seed=0, from_scratch=settings.from_scratch)  # its errors now, not after tokenizing
        pretraining = _pretraining_summary(settings.model)
    with clock.step("tokenize"):
        data = encode_splits(task.kind, splits, checkpoint)
    searched = None
    if settings.search:
        with clock.step("search"):
            settings, searched = search(task.kind, checkpoint, settings, data.train, data.validation)
    with clock.step("train and score all seeds"):
        best, row = _all_seeds(task.kind, checkpoint, settings, data)
    comparison = []
    if settings.compare or baselines:
        with clock.step("quick baselines"):
            comparison += task.kind.baselines(splits)
    if settings.compare:
        with clock.step("same architecture from scratch"):
            comparison.append(from_scratch(task.kind, checkpoint, settings, data))
    submission = {}
    if settings.submission:
        with clock.step("answer the test rows"):
            submission = answer_test(task, checkpoint, settings, best)
    results = collect_results(
        task, settings, checkpoint, splits, best, row, comparison, searched, pretraining, command, clock.seconds
    )
    if processes.is_main():
        write_result_directory(output, results, task, splits, data, best, checkpoint, submission)
        rows = [*comparison, row]
        print(text_table(table_cells(rows, task.kind.main)))
        print(f"seed {best.result.seed}, the best on validation, is in {output}", flush=True)
        if report is not None:
            atomic_write_text(report, markdown_report(results, rows))
            print(f"report: {report}")
    processes.wait_for_everyone()
    return results


def _all_seeds(
    kind: Kind, checkpoint: Checkpoint, settings: FinetuneSettings, data: EncodedSplits
) -> tuple[ScoredSeed, Row]:
    started = time.perf_counter()
    best, seed_results = None, []
    for seed in range(1, settings.seeds + 1):
        trained = train_seed(kind, checkpoint, settings, data, seed, title=f"seed {seed}")
        scored = score_reported(kind, checkpoint, settings, data, trained)
        seed_results.append(scored.result)
        if best is None or scored.result.validation > best.result.validation:
            best = scored
    return best, Row.of_seeds(row_name(settings), seed_results, seconds=time.perf_counter() - started)


def row_name(settings: FinetuneSettings) -> str:
    path = Path(settings.model)
    name = path.resolve().name if path.is_dir() else settings.model
    return name + (", from scratch" if settings.from_scratch else ", fine-tuned")


def free_paths(settings: FinetuneSettings) -> tuple[Path, Path | None]:
    """The two places to write to, after checking that a long run will not fail on them at its end."""
    output = Path(settings.output)
    if not (settings.resume and output.is_dir()):
        require_free_output(output)
    require_writable_parent("--output", output)
    if settings.report is None:
        return output, None
    report = Path(settings.report)
    if report.is_dir():
        raise UserError(f"--report {report}: is a directory; name a file")
    require_writable_parent("--report", report)
    return output, report


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


class _Clock:
    """Seconds per named step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 2)
