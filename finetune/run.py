"""One fine-tuning run, read from top to bottom: `Run(settings, command).execute()`.

Until it is finished, everything is in OUTPUT.unfinished: run.json (what is run), seeds/1/, seeds/2/, ..., trials/ of a
search and scratch/ of the control, each a seed's directory (`train`). `--resume` skips what is done.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel

from hf_tiny_transformer.common.environment import device_name, keep_freed_memory, quieten_libraries, versions
from hf_tiny_transformer.common.errors import RunError, TerminatedError, UserError
from hf_tiny_transformer.common.files import (
    atomic_directory,
    atomic_write_json,
    atomic_write_text,
    read_json,
    require_free_output,
    require_writable_parent,
)
from hf_tiny_transformer.common.processes import is_main, say, wait_for_everyone, world_size
from hf_tiny_transformer.publish.card import write_card
from hf_tiny_transformer.publish.facts import estimate_energy, public_name

from . import report, train
from .baselines import from_scratch, quick_baselines
from .data.glue import load_test
from .report import RESULTS_FILE, SEARCH, SEEDS, Results, Row
from .settings import FinetuneSettings
from .tasks import SUITE, Task, open_task
from .train import RESULT, SeedResult, Training, disk_errors
from .trainer import LAST

RUN_FILE = "run.json"
# May differ between the parts of a run; the data are compared by their sha256.
NOT_COMPARED = {"output", "report", "resume", "data", "trust_remote_code"}
PACKAGES = (
    *("torch", "transformers", "tokenizers", "accelerate", "datasets", "peft", "optuna"),
    *("numpy", "scipy", "scikit-learn"),
)


class Run:
    """One task: search, all seeds, comparison, and the result directory.

    Args:
        settings: What to run.
        command: The command line, for the report.
        baselines: Whether to measure the quick baselines even without `settings.compare`.

    Raises:
        UserError: An output path cannot be used.
    """

    def __init__(self, settings: FinetuneSettings, command: str, *, baselines: bool = False) -> None:
        self.settings, self.command, self.baselines = settings, command, baselines
        self.output, self.report = output_paths(settings)
        self.folder = unfinished_folder(self.output)
        self.timings: dict[str, float] = {}
        self.searched: dict[str, Any] | None = None

    def execute(self) -> Results:
        """Run everything, or what an interrupted run left, and return what results.json has.

        Raises:
            UserError: Any input is wrong. All of it is checked before the first training step; nothing is written then.
            RunError: The code of the model card fails; everything but the card is written.
        """
        quieten_libraries()
        logging.getLogger("hf_tiny_transformer.common.checkpoints").setLevel(logging.ERROR)  # a new head is expected
        keep_freed_memory()
        if (finished := self.open()) is not None:
            say(f"{self.output}: finished before")
            return finished
        with self.interruptible():
            self.search()
            results = self.train_seeds()
            rows = [*self.compare(), self.row(results)]
            published = self.publish(results, rows)
            self.remove_folder()
        wait_for_everyone()
        return published

    def open(self) -> Results | None:
        """Read data, checkpoint and tokens; return the results if an earlier run finished."""
        earlier = check_resumable(self.settings)
        with self.step("read and split the data"):
            self.task, self.splits = open_task(self.settings)
        if earlier is not None:
            _require_same_data(self.output / RESULTS_FILE, earlier.data, self.splits.describe())
            return earlier
        with self.step("open the checkpoint"):
            settings, kind = self.settings, self.task.kind
            self.checkpoint = kind.open(
                settings.model,
                max_length=settings.max_length,
                dropout=settings.dropout,
                trust_remote_code=settings.trust_remote_code,
            )
            self.pretraining = _pretraining_summary(settings.model)
            self.identity = {
                "settings": settings.public(),
                "data": self.splits.describe(),
                "weights": _fingerprint(self.checkpoint.build(0, from_scratch=settings.from_scratch)),
                "processes": world_size(),
            }
            self.require_same()
        with self.step("tokenize"):
            parts = (kind.encode(rows, self.checkpoint) for rows in (self.splits.train, self.splits.validation))
            self.training = Training(kind, self.checkpoint, settings, *parts)
            self.reported = {name: kind.encode(rows, self.checkpoint) for name, rows in self.splits.reported.items()}
        return None

    def search(self) -> None:
        """Choose learning rate, batch size and epochs on validation."""
        if self.settings.search:
            self.training, self.searched, seconds = train.search(self.training, self.folder / "trials")
            self.timings[SEARCH] = round(seconds, 2)

    def train_seeds(self) -> list[SeedResult]:
        """Train and score all seeds; the weights of the best one on validation are kept."""
        results: list[SeedResult] = []
        for seed in range(1, self.settings.seeds + 1):
            directory = self.seed_directory(seed)
            if (earlier := train.read_result(directory)) is not None and earlier.reported:
                say(f"finished before: seed {seed}")
            train.train_seed(self.training, directory, seed, f"seed {seed}")
            results.append(train.score_seed(self.training, directory, self.reported))
            best = best_of(results).seed
            for other in range(1, seed + 1):
                if other != best:
                    train.discard_weights(self.seed_directory(other))
        self.timings[SEEDS] = round(sum(result.seconds for result in results), 2)  # in all parts of a resumed run
        return results

    def compare(self) -> list[Row]:
        """Measure simpler methods."""
        rows: list[Row] = []
        if self.settings.compare or self.baselines:
            with self.step("quick baselines"):
                rows += quick_baselines(self.task.kind, self.splits)
        if self.settings.compare:
            rows.append(from_scratch(self.training, self.folder / "scratch", self.reported))
            self.timings["same architecture from scratch"] = rows[-1].seconds
        return rows

    def row(self, results: Sequence[SeedResult]) -> Row:
        """Return the table's row of this run."""
        return Row.of_seeds(row_name(self.settings), results, self.timings[SEEDS])

    def publish(self, results: Sequence[SeedResult], rows: Sequence[Row]) -> Results:
        """Write the result directory, which is complete or absent, and print the table.

        Args:
            results: All seeds.
            rows: The table; the last row is this run's.
        """
        best = best_of(results)
        model, submission = train.load_seed(self.training, self.seed_directory(best.seed)), {}
        outputs = {name: train.outputs_of(self.training, model, split) for name, split in self.reported.items()}
        if self.settings.submission:
            with self.step("answer the test rows"):
                submission = answer_test(self.task, self.training, model)
        collected = self.collect(best, rows, model)
        if not is_main():
            return collected
        failure = None
        with disk_errors(self.output), atomic_directory(self.output) as staging:
            model.save_pretrained(staging)
            self.checkpoint.tokenizer.save_pretrained(staging)
            self.write_predictions(staging / "predictions.csv", outputs)
            for name, text in submission.items():
                atomic_write_text(staging / "submission" / name, text)
            (staging / "training").mkdir()
            report.draw_curve(collected, staging / "training" / "loss.png")
            atomic_write_json(staging / RESULTS_FILE, vars(collected))
            name, example = self.output.absolute().name, self.splits.train[0]
            try:
                write_card(staging, report.describe_model(collected, self.task, model, self.checkpoint, example, name))
            except RunError as error:
                failure = error
        print(report.text_table(report.table_cells(rows, self.task.kind.main)))
        print(f"seed {best.seed}, the best on validation, is in {self.output}", flush=True)
        if self.report is not None:
            atomic_write_text(self.report, report.markdown_report(collected, rows))
            print(f"report: {self.report}")
        if failure is not None:
            raise RunError(f"{self.output}: {failure}") from failure
        return collected

    def collect(self, best: SeedResult, rows: Sequence[Row], model: PreTrainedModel) -> Results:
        """Return the content of results.json."""
        headline = self.splits.headline, self.task.kind.main
        *others, own = (row.record(headline) for row in rows)
        settings = self.training.settings.public() | {"max_length": self.checkpoint.max_length}
        trained = self.timings[SEEDS] + self.timings.get(SEARCH, 0.0)
        return Results(
            task=public_name(self.task.name),
            kind=type(self.task.kind).__name__,
            model=public_name(self.settings.model),
            metric=self.task.kind.main,
            reported_split=self.splits.headline,
            validation=own["validation"],
            test=own["test"],
            scores=own["scores"],
            best_seed=best.seed,
            seeds=own["seeds"],
            comparison=others,
            search=self.searched,
            settings=settings,
            parameters=model.num_parameters(),
            data=self.splits.describe(),
            pretraining=self.pretraining,
            versions=versions(PACKAGES),
            device=device_name(),
            processes=world_size(),
            command=self.command,
            energy=estimate_energy(trained, world_size()),
            timings=self.timings,
            seconds=round(sum(self.timings.values()), 2),
        )

    def write_predictions(self, path: Path, outputs: dict[str, Any]) -> None:
        """Write each reported split's rows in order; with several splits, the first column is `split`."""
        columns = self.task.text_columns if len(self.task.text_columns) > 1 else ("text",)
        rows: list[dict[str, Any]] = []
        for name, split in self.reported.items():
            first = {"split": name} if len(self.reported) > 1 else {}
            rows += [first | row for row in self.task.kind.predictions(outputs[name], split, columns)]
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def seed_directory(self, seed: int) -> Path:
        """Return the directory of a seed."""
        return self.folder / "seeds" / str(seed)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure the seconds of a step."""
        started = time.perf_counter()
        yield
        self.timings[name] = round(time.perf_counter() - started, 2)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """End the run with one line on SIGTERM; the folder stays if there is anything to resume."""

        def end(*_: object) -> NoReturn:
            kept = f"finished parts are in {self.folder}; continue with --resume"
            raise TerminatedError(f"SIGTERM: {kept if _has_progress(self.folder) else 'no epoch was finished'}")

        if is_main() and not _has_progress(self.folder):
            shutil.rmtree(self.folder, ignore_errors=True)
            with disk_errors(self.folder):
                atomic_write_json(self.folder / RUN_FILE, self.identity)
        before = signal.signal(signal.SIGTERM, end)
        try:
            yield
        except BaseException:
            if is_main() and not _has_progress(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            signal.signal(signal.SIGTERM, before)

    def require_same(self) -> None:
        """Check that an unfinished run had the same data, weights and processes.

        Raises:
            UserError: One of them changed.
        """
        if not _has_progress(self.folder):
            return
        before = _read_identity(self.folder)
        _require_same_data(self.folder / RUN_FILE, before["data"], self.identity["data"])
        for name, what in (("weights", "the weights of --model"), ("processes", "the number of processes")):
            then, now = before.get(name), self.identity[name]
            if then != now:
                raise UserError(
                    f"--resume: {what} changed since {self.folder} was started ({str(then)[:12]} then, {str(now)[:12]} "
                    "now); restore it, or delete that folder to start again"
                )

    def remove_folder(self) -> None:
        """Remove what a finished run no longer needs; it is renamed first, so that no part looks unfinished."""
        if is_main():
            retired = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
            os.rename(self.folder, retired / self.folder.name)
            shutil.rmtree(retired)


def best_of(results: Sequence[SeedResult]) -> SeedResult:
    """Return the best seed on validation, the first among equals."""
    return max(results, key=lambda result: result.validation)


def row_name(settings: FinetuneSettings) -> str:
    """Return the name of a run's row in the table."""
    path = Path(settings.model)
    name = path.resolve().name if path.is_dir() else settings.model
    return name + (", from scratch" if settings.from_scratch else ", fine-tuned")


def unfinished_folder(output: Path) -> Path:
    """Return where the parts of an unfinished run are."""
    return output.absolute().with_name(f"{output.absolute().name}.unfinished")


def output_paths(settings: FinetuneSettings) -> tuple[Path, Path | None]:
    """Return the output directory and the report's file.

    Raises:
        UserError: They cannot be written, or an interrupted run would be lost.
    """
    output = Path(settings.output)
    is_own = settings.resume and output.is_dir() and (settings.task == SUITE or (output / RESULTS_FILE).is_file())
    if not is_own:
        require_free_output(output)
    folder = unfinished_folder(output)
    if not settings.resume and _has_progress(folder):
        raise UserError(
            f"--output {output}: its run was interrupted, and {folder} has the finished parts; continue with --resume, "
            "or delete that folder to start again"
        )
    if any(folder.glob("*.pt")):
        raise UserError(f"{folder}: was written by an older version, which cannot be resumed; delete it to start again")
    require_writable_parent("--output", output)
    if settings.report is None:
        return output, None
    report = Path(settings.report)
    if report.is_dir():
        raise UserError(f"--report {report}: is a directory; name a file")
    require_writable_parent("--report", report)
    return output, report


def check_resumable(settings: FinetuneSettings) -> Results | None:
    """Return the results of a finished run of `settings.output`, or None if something is left to run.

    Raises:
        UserError: The finished or unfinished run had other settings, or its files are damaged.
    """
    output, folder = Path(settings.output), unfinished_folder(Path(settings.output))
    if not settings.resume:
        return None
    if _has_progress(folder):
        _require_same_settings(folder / RUN_FILE, _read_identity(folder)["settings"], settings)
        return None
    if not (output / RESULTS_FILE).is_file():
        return None
    results = Results.read(output / RESULTS_FILE)
    chosen = set(results.search["chosen"]) if results.search else set()
    _require_same_settings(output / RESULTS_FILE, results.settings, settings, chosen)
    return results


def answer_test(task: Task, training: Training, model: PreTrainedModel) -> dict[str, str]:
    """Answer GLUE's test rows in the server's format.

    Returns:
        The content of each file by name, for the test splits that exist.

    Raises:
        UserError: A test file is broken, or the Hub cannot be reached.
    """
    assert task.glue is not None
    labels, answers = task.glue.file_labels, {}
    for name, rows in load_test(task.glue, task.text_columns, training.settings.data).items():
        split = task.kind.encode([example for _, example in rows], training.checkpoint, labelled=False)
        predictions = task.kind.decode(train.outputs_of(training, model, split), split)
        spelled = [labels[value] if labels else f"{min(5.0, max(0.0, value)):.3f}" for value in predictions]  # STS-B
        lines = [f"{index}\t{answer}" for (index, _), answer in zip(rows, spelled, strict=True)]
        answers[f"{name}.tsv"] = "\n".join(["index\tprediction", *lines]) + "\n"
    return answers


def _has_progress(folder: Path) -> bool:
    """Return whether anything in an unfinished run's folder is worth resuming."""
    return folder.is_dir() and any(path.name in (RESULT, LAST) for path in folder.rglob("*.json"))


def _read_identity(folder: Path) -> dict[str, Any]:
    path, advice = folder / RUN_FILE, f"delete {folder} to start again"
    content = read_json(path, advice)
    if not isinstance(content.get("settings"), dict) or "sha256" not in content.get("data", {}):
        raise UserError(f"{path}: cannot be read (no settings or data); {advice}")
    return content


def _require_same_settings(
    path: Path,
    before: dict[str, Any],
    settings: FinetuneSettings,
    chosen: set[str] = frozenset(),  # type: ignore[assignment]
) -> None:
    """Compare the user's settings; what a search chose, and a length that is not given, are not the user's."""
    for name, value in settings.public().items():
        skipped = name in NOT_COMPARED | chosen or (name == "max_length" and value is None)
        if not skipped and before.get(name) != value:
            raise UserError(
                f"--resume: {path} was made with {name} {before.get(name)}, now it is {value}; "
                "use the same flags, or name a new --output"
            )


def _require_same_data(path: Path, before: dict[str, Any], data: dict[str, Any]) -> None:
    if before != data:
        raise UserError(
            f"--resume: the data changed: {path} was made with {before.get('counts')}, sha256 "
            f"{str(before.get('sha256'))[:12]}, now it is {data['counts']}, {data['sha256'][:12]}; "
            f"use the same data, or delete {path.parent} to start again"
        )


def _fingerprint(model: torch.nn.Module) -> str:
    """Return a sha256 of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _pretraining_summary(model: str) -> dict[str, Any] | None:
    """Return what our pretraining wrote beside the model; None for a model from elsewhere."""
    path = Path(model) / "training" / "summary.json"
    return read_json(path, "correct or delete it") if path.is_file() else None
