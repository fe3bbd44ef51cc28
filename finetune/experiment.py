"""One fine-tuning run from checks to files, top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from hf_tiny_transformer.runs import UserError, atomic_write_text, keep_freed_memory, require_free_output

from . import processes
from .baselines import from_scratch
from .checkpoint import Checkpoint, build_model, open_checkpoint
from .environment import quieten, require_writable_parent
from .kinds.base import Kind
from .report import Row, markdown_report, table_cells, text_table
from .results import collect_results, write_result_directory
from .resume import (
    RESULTS_FILE,
    Unfinished,
    earlier_results,
    require_same_data,
    run_identity,
    say,
    unfinished_folder,
)
from .search import search
from .settings import FinetuneSettings
from .submission import answer_test
from .tasks import SUITE, open_task
from .train import EncodedSplits, ScoredSeed, SeedResult, encode_splits, restore_scored, score_reported, train_seed


def run_experiment(settings: FinetuneSettings, command: str, *, baselines: bool = False) -> dict:
    """Trains all seeds, prints the table, writes `settings.output`; returns what results.json holds. Of several
    processes one prints and writes. `baselines` asks for those that are quick even without `settings.compare`.

    What is finished is kept beside the output until all is; `settings.resume` goes on from there, to the same results.

    Raises:
        UserError: any input is wrong. All of it is checked before the first training step, and nothing is written.
    """
    quieten()
    keep_freed_memory()
    clock = _Clock()
    output, report = free_paths(settings)
    earlier = earlier_results(settings) if settings.resume else None
    with clock.step("read and split the data"):
        task, splits = open_task(settings)
    if earlier is not None:
        require_same_data(output / RESULTS_FILE, earlier, splits.describe())
        say(f"{output}: finished before")
        return earlier
    with clock.step("open the checkpoint"):
        checkpoint = open_checkpoint(
            settings.model,
            task.kind,
            dropout=settings.dropout,
            max_length=settings.max_length,
            trust_remote_code=settings.trust_remote_code,
        )
        first_model = build_model(checkpoint, seed=0, from_scratch=settings.from_scratch)  # its errors come now
        unfinished = Unfinished(output, run_identity(settings, splits, first_model))
        del first_model
        unfinished.require_same()
        pretraining = _pretraining_summary(settings.model)
    with clock.step("tokenize"):
        data = encode_splits(task.kind, splits, checkpoint)
    searched, comparison, submission = None, [], {}
    with unfinished.kept_on_sigterm():
        if settings.search:
            settings, searched, seconds = search(
                task.kind, checkpoint, settings, data.train, data.validation, unfinished
            )
            clock.seconds["search"] = round(seconds, 2)
        best, row = _all_seeds(task.kind, checkpoint, settings, data, unfinished)
        clock.seconds["train and score all seeds"] = row.seconds  # in all parts of the run, where it was resumed
        if settings.compare or baselines:
            with clock.step("quick baselines"):
                comparison += task.kind.baselines(splits)
        if settings.compare:
            comparison.append(from_scratch(task.kind, checkpoint, settings, data, unfinished))
            clock.seconds["same architecture from scratch"] = comparison[-1].seconds
        if settings.submission:
            with clock.step("answer the test rows"):
                submission = answer_test(task, checkpoint, settings, best)
        results = collect_results(
            task, settings, checkpoint, splits, best, row, comparison, searched, pretraining, command, clock.seconds
        )
        if processes.is_main():
            write_result_directory(output, results, task, splits, data, best, checkpoint, submission)
            _announce(results, [*comparison, row], task.kind.main, best.result.seed, output, report)
        unfinished.remove()
    processes.wait_for_everyone()
    return results


def _announce(results: dict, rows: list[Row], main: str, best_seed: int, output: Path, report: Path | None) -> None:
    print(text_table(table_cells(rows, main)))
    print(f"seed {best_seed}, the best on validation, is in {output}", flush=True)
    if report is not None:
        atomic_write_text(report, markdown_report(results, rows))
        print(f"report: {report}")


def _all_seeds(
    kind: Kind, checkpoint: Checkpoint, settings: FinetuneSettings, data: EncodedSplits, unfinished: Unfinished
) -> tuple[ScoredSeed, Row]:
    """The best seed and all of them; those that an interrupted run finished are taken from what it kept."""
    best, results = None, []
    if (kept := unfinished.load("seeds")) is not None:
        results = [SeedResult(**result) for result in kept["facts"]]
        say(f"finished before: seed {', '.join(str(result.seed) for result in results)}")
        chosen = max(results, key=lambda result: result.validation)  # the first among equals
        best = restore_scored(kind, checkpoint, settings, data, chosen, kept["best"])
    for seed in range(len(results) + 1, settings.seeds + 1):
        trained = train_seed(kind, checkpoint, settings, data, seed, title=f"seed {seed}", unfinished=unfinished)
        scored = score_reported(kind, checkpoint, settings, data, trained)
        results.append(scored.result)
        if best is None or scored.result.validation > best.result.validation:
            best = scored
        unfinished.save("seeds", [asdict(result) for result in results], best=best.model.state_dict())
    return best, Row.of_seeds(row_name(settings), results, seconds=sum(result.seconds for result in results))


def row_name(settings: FinetuneSettings) -> str:
    path = Path(settings.model)
    name = path.resolve().name if path.is_dir() else settings.model
    return name + (", from scratch" if settings.from_scratch else ", fine-tuned")


def free_paths(settings: FinetuneSettings) -> tuple[Path, Path | None]:
    """The two places to write to, after checking that a long run will not fail on them at its end."""
    output = Path(settings.output)
    is_own = settings.resume and output.is_dir() and (settings.task == SUITE or (output / RESULTS_FILE).is_file())
    if not is_own:
        require_free_output(output)
    if not settings.resume and unfinished_folder(output).exists():
        raise UserError(
            f"--output {output}: its run was interrupted, and {unfinished_folder(output)} keeps what it finished; "
            "go on with --resume, or remove that folder to begin anew"
        )
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
