"""One fine-tuning run, read from top to bottom: `Run(settings, command).execute()`.

Until it is finished, everything is in OUTPUT.unfinished: run.json (what is run), seeds/1/, seeds/2/, ..., trials/ of a
search and scratch/ of the control, each a seed's directory (`train`). `--resume` skips what is done.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel

from hf_tiny_transformer.common import files
from hf_tiny_transformer.common.environment import device_name, keep_freed_memory, quieten_libraries, versions
from hf_tiny_transformer.common.errors import RunError, StoppedError, UserError, on_stop
from hf_tiny_transformer.common.processes import is_main, say, wait_for_everyone, world_size
from hf_tiny_transformer.publish.card import write_card
from hf_tiny_transformer.publish.facts import estimate_energy, public_name

from . import report, train
from .baselines import from_scratch, quick_baselines
from .data.glue import GlueSource, load_test
from .report import RESULTS_FILE, SEARCH, SEEDS, Results, Row
from .settings import FinetuneSettings
from .tasks import SUITE, open_task
from .train import RESULT, SeedResult, Training

RUN_FILE = "run.json"
DATA = "texts and labels"  # in run.json; `data` is the flag
NOT_COMPARED = {"output", "report", "resume", "data", "trust_remote_code"}  # may differ between the parts of a run
PACKAGES: tuple[str, ...] = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "peft", "optuna")
PACKAGES += ("numpy", "scipy", "scikit-learn")


class Run:
    """One task: search, all seeds, comparison, and the result directory.

    `command` is shown in the report; `baselines` measures the quick baselines even without `settings.compare`.
    """

    training: Training  # set by `open`, like `reported`
    reported: train.Reported

    def __init__(self, settings: FinetuneSettings, command: str, *, baselines: bool = False) -> None:
        self.settings, self.command, self.baselines = settings, command, baselines
        self.output, self.folder = Path(settings.output), unfinished_folder(settings)
        self.timings: dict[str, float] = {}
        self.searched: dict[str, Any] | None = None

    def execute(self) -> Results:
        """Run everything, or what an interrupted run left, and return what results.json has.

        Raises:
            UserError: Any input is wrong. All of it is checked before the first training step; nothing is written then.
            RunError: The code of the model card fails; everything but the card is written.
        """
        with files.only_process(self.output, "--output") if is_main() else nullcontext():
            check_output(self.settings)
            return self._execute()

    def _execute(self) -> Results:
        quieten_libraries()
        logging.getLogger("hf_tiny_transformer.common.checkpoints").setLevel(logging.ERROR)  # a new head is expected
        keep_freed_memory()
        if (finished := self.open()) is not None:
            say(f"{self.output}: finished before")
            if is_main():
                shutil.rmtree(self.folder, ignore_errors=True)
            return finished
        with self.interruptible():
            if self.settings.search:
                self.training, self.searched, seconds = train.search(self.training, self.folder / "trials")
                self.timings[SEARCH] = round(seconds, 2)
            results = train.train_seeds(self.training, self.folder / "seeds", self.reported)
            self.timings[SEEDS] = round(sum(result.seconds for result in results), 2)  # in all parts of a resumed run
            own = Row.of(row_name(self.settings), results, self.task.kind.main, self.timings[SEEDS])
            rows = [*self.compare(), own]
            published = self.publish(train.best_of(results), rows)
            if is_main():
                shutil.rmtree(self.folder)
        wait_for_everyone()
        return published

    def open(self) -> Results | None:
        """Read data, checkpoint and tokens; return the results if an earlier run finished."""
        settings, finished = self.settings, check_resumable(self.settings)
        self.task, self.splits = open_task(settings)
        self.data, kind = self.splits.describe(), self.task.kind
        if finished is not None:
            require_same(self.output / RESULTS_FILE, {DATA: finished.data}, {DATA: self.data})
            return finished
        options = ("max_length", "dropout", "trust_remote_code")
        self.checkpoint = kind.open(settings.model, **{name: getattr(settings, name) for name in options})
        model = self.checkpoint.build(0, from_scratch=settings.from_scratch)
        self.parameters = model.num_parameters()
        self.identity = {
            **settings.public(),
            DATA: self.data,
            "weights of --model": _fingerprint(model),
            "number of processes": world_size(),
        }
        if has_progress(self.folder):
            require_same(self.folder / RUN_FILE, _read_run(self.folder), self.identity)
        parts = (kind.encode(rows, self.checkpoint) for rows in (self.splits.train, self.splits.validation))
        self.training = Training(kind, self.checkpoint, settings, *parts)
        self.reported = {name: kind.encode(rows, self.checkpoint) for name, rows in self.splits.reported.items()}
        splits = {"train": self.training.train, "validation": self.training.validation, **self.reported}
        if any(any(split.cut) for split in splits.values()):
            counts = ", ".join(f"{name} {sum(split.cut)}" for name, split in splits.items())
            say(f"texts truncated to {self.checkpoint.max_length} tokens (--max_length): {counts}")
        return None

    def compare(self) -> list[Row]:
        """Measure simpler methods."""
        wanted = self.settings.compare or self.baselines
        rows = quick_baselines(self.task.kind, self.splits) if wanted else []
        if self.settings.compare:
            rows.append(from_scratch(self.training, self.folder / "scratch", self.reported))
        self.timings["comparison"] = round(sum(row.seconds for row in rows), 2)
        return rows

    def publish(self, best: SeedResult, rows: Sequence[Row]) -> Results:
        """Write the result directory, complete or absent, and print the table, whose last row is this run's."""
        model = train.load_seed(self.training, self.folder / "seeds" / str(best.seed))
        outputs = {name: train.outputs_of(self.training, model, split) for name, split in self.reported.items()}
        submission = self.answer_test(model, self.task.glue) if self.settings.submission and self.task.glue else {}
        first = next(iter(self.reported))
        results = self.collect(best, rows, model, self.task.kind.by_class(outputs[first], self.reported[first]))
        if not is_main():
            return results
        failure = None
        with files.atomic_directory(self.output) as staging:
            model.save_pretrained(staging)
            if self.task.kind.keeps_length:  # longer texts were not evaluated
                self.checkpoint.tokenizer.model_max_length = self.checkpoint.max_length
            self.checkpoint.tokenizer.save_pretrained(staging)
            self.write_predictions(staging / "predictions.csv", outputs)
            for name, text in submission.items():
                files.atomic_write_text(staging / "submission" / name, text)
            report.draw_curve(results, staging / "training" / "loss.png")
            report.draw_confusion(results, staging / "training" / "confusion.png")
            files.atomic_write_json(staging / RESULTS_FILE, vars(results))
            name, example = self.output.absolute().name, self.splits.train[0]
            try:
                write_card(staging, report.describe_model(results, self.task, model, self.checkpoint, example, name))
            except RunError as error:
                failure = error
            if self.settings.report is not None:
                files.atomic_write_text(self.settings.report, report.markdown_report(results, rows))
        print(report.text_table(report.table_cells(rows, self.task.kind.main)))
        print(f"seed {best.seed}, the best on validation, is in {self.output}", flush=True)
        if self.settings.report is not None:
            print(f"report: {self.settings.report}")
        if failure is not None:
            raise RunError(f"{self.output}: {failure}") from failure
        return results

    def collect(
        self, best: SeedResult, rows: Sequence[Row], model: PreTrainedModel, by_class: dict[str, Any] | None
    ) -> Results:
        """Return the content of results.json."""
        *others, own = map(asdict, rows)
        return Results(
            task=public_name(self.task.name),
            model=public_name(self.settings.model),
            metric=self.task.kind.main,
            **{name: own[name] for name in ("validation", "test", "scores", "seeds")},
            best_seed=best.seed,
            comparison=others,
            search=self.searched,
            settings=self.training.settings.public() | {"max_length": self.checkpoint.max_length},
            parameters=model.num_parameters(),
            data=self.data,
            versions=versions(PACKAGES),
            device=device_name(),
            processes=world_size(),
            command=self.command,
            energy=estimate_energy(self.timings[SEEDS] + self.timings.get(SEARCH, 0.0), world_size()),
            timings=self.timings,
            seconds=round(sum(self.timings.values()), 2),
            by_class=by_class,
        )

    def answer_test(self, model: PreTrainedModel, source: GlueSource) -> dict[str, str]:
        """Answer GLUE's test rows; return the files of a submission, for the test splits that exist."""
        kind, answers = self.task.kind, {}
        spell = source.file_labels.__getitem__ if source.file_labels else lambda i: f"{min(5.0, max(0.0, i)):.3f}"
        for name, rows in load_test(source, self.task.text_columns, self.settings.data).items():
            split = kind.encode([example for _, example in rows], self.checkpoint, labelled=False)
            predicted = kind.decode(train.outputs_of(self.training, model, split), split)
            lines = [f"{index}\t{spell(answer)}" for (index, _), answer in zip(rows, predicted, strict=True)]
            answers[f"{name}.tsv"] = "\n".join(["index\tprediction", *lines]) + "\n"
        return answers

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

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """End the run with one line on a signal; the folder stays if there is anything to resume."""

        def end(number: int) -> NoReturn:
            kept = f"finished parts are in {self.folder}; continue with --resume"
            raise StoppedError(number, kept if has_progress(self.folder) else "no epoch was finished")

        def remove_if_useless() -> None:
            if is_main() and not has_progress(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)

        remove_if_useless()
        if is_main() and not self.folder.exists():
            # weights and two moments in three checkpoints (last, best, new), and the result twice
            needed = 4 * self.parameters * (3 * 3 + 2)
            files.require_space(self.folder, needed, "three checkpoints and the result")
            files.atomic_write_json(self.folder / RUN_FILE, self.identity, checksum=True)
        with on_stop(end):
            try:
                yield
            except BaseException:
                remove_if_useless()
                raise


def row_name(settings: FinetuneSettings) -> str:
    """Return the name of a run's row in the table."""
    path = Path(settings.model)
    name = path.resolve().name if path.is_dir() else settings.model
    return name + (", from scratch" if settings.from_scratch else ", fine-tuned")


def unfinished_folder(settings: FinetuneSettings) -> Path:
    """Return where the parts of an unfinished run are."""
    output = Path(settings.output).absolute()
    return output.with_name(f"{output.name}.unfinished")


def has_progress(folder: Path) -> bool:
    """Return whether anything in an unfinished run's folder is worth resuming."""
    return folder.is_dir() and any(path.name in (RESULT, files.SUMS) for path in folder.rglob("*"))


def check_output(settings: FinetuneSettings) -> None:
    """Check that output directory and report can be written, and that no interrupted run is overwritten."""
    output, folder = Path(settings.output), unfinished_folder(settings)
    finished = output.is_dir() and (settings.task == SUITE or (output / RESULTS_FILE).is_file())
    if not (settings.resume and finished):
        files.require_free_output(output)
    if not settings.resume and has_progress(folder):
        problem = f"--output {output}: its run was interrupted, and {folder} has the finished parts"
        raise UserError(f"{problem}; continue with --resume, or delete that folder to start again")
    if settings.report is not None:
        if Path(settings.report).is_dir():
            raise UserError(f"--report {settings.report}: is a directory; name a file")
        files.require_writable("--report", Path(settings.report))


def check_resumable(settings: FinetuneSettings) -> Results | None:
    """Return the results of a finished run of `settings.output`, or None; refuse to resume one with other settings."""
    path, folder = Path(settings.output) / RESULTS_FILE, unfinished_folder(settings)
    if settings.resume and path.is_file():
        if (problem := files.damage(path.parent)) is not None:
            raise UserError(f"{path.parent}: {problem}; delete it to run it again")
        results = Results.read(path)
        not_the_users = set(results.search["chosen"]) if results.search else set()
        not_the_users |= {"max_length"} if settings.max_length is None else set()
        require_same(path, results.settings, settings.public(), not_the_users)
        return results
    if settings.resume and has_progress(folder):
        require_same(folder / RUN_FILE, _read_run(folder), settings.public())
    return None


def require_same(path: Path, before: dict[str, Any], now: dict[str, Any], skipped: Collection[str] = ()) -> None:
    """Compare what a run was made of, as `path` has it, with what it would be made of now."""
    for name, value in now.items():
        if name not in {*NOT_COMPARED, *skipped} and before.get(name) != value:
            problem = f"{path} was made with {name} {before.get(name)}, now it is {value}"
            advice = f"restore it, or name a new --output, or delete {path.parent} to start again"
            raise UserError(f"--resume: {problem}; {advice}")


def _read_run(folder: Path) -> dict[str, Any]:
    return files.read_json(folder / RUN_FILE, f"delete {folder} to start again", checksum=True)


def _fingerprint(model: torch.nn.Module) -> str:
    """Return a sha256 of a model's weights, which are on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
