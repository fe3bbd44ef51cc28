"""`--task glue`: every GLUE task that is available, one table, and a submission for the server."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import atomic_file, atomic_write_json, atomic_write_text, only_process
from hf_tiny_transformer.common.processes import is_main, say, wait_for_everyone
from hf_tiny_transformer.publish.card import escape, markdown_table
from hf_tiny_transformer.publish.facts import percent, public_name, spread

from .data.glue import is_present
from .report import RESULTS_FILE, Results, text_table
from .run import Run, check_output, check_resumable, row_name
from .settings import FinetuneSettings
from .tasks import TASKS, GlueTask, refuse_own_file_flags

GLUE = [task for task in TASKS.values() if isinstance(task, GlueTask)]
# In percent, in the order of `GLUE`: github.com/google-research/bert, README of 11 March 2020, GLUE's hidden test sets
_TINY = ((0.0,), (83.2,), (81.1, 71.1), (74.3, 73.6), (62.2, 83.4), (70.2, 70.3), (81.5,), (57.2,), (62.3,))
_MINI = ((0.0,), (85.9,), (81.1, 71.8), (75.4, 73.3), (66.4, 86.2), (74.8, 74.3), (84.1,), (57.9,), (62.3,))
PUBLISHED = {
    name: {task.glue.folder: of_task for task, of_task in zip(GLUE, scores, strict=True)}
    for name, scores in (("BERT-Tiny", _TINY), ("BERT-Mini", _MINI))
}
SUFFIXES = {"dev_matched": "-m", "dev_mismatched": "-mm"}  # MNLI is reported on two splits
NOTE = (
    "Ours, the constant and TF-IDF: on dev, mean ± standard deviation over seeds, in percent. BERT-Tiny (2 layers of "
    "128) and BERT-Mini (4 of 256): as published, on GLUE's hidden test sets, with the best of 20 settings per task; "
    "dev and test differ, most of all in WNLI."
)


def run_suite(settings: FinetuneSettings, command: str) -> None:
    """Run the tasks one by one, each in its own folder of `settings.output`; table and submission come last."""
    output = Path(settings.output)
    with only_process(output, "--output") if is_main() else nullcontext():
        check_output(settings)
        _run_suite(settings, command, output)


def _run_suite(settings: FinetuneSettings, command: str, output: Path) -> None:
    present, absent = _tasks(settings)
    folders = {task.name: str(output / task.glue.folder) for task in present}
    of_tasks = [replace(settings, task=name, output=folder, report=None) for name, folder in folders.items()]
    for own in of_tasks:  # other settings than before are refused now, not after hours
        check_resumable(own)
    say(f"GLUE: {_folders(present)}" + (f"; absent: {_folders(absent)}" if absent else ""))
    results: list[Results] = []
    for task, own in zip(present, of_tasks, strict=True):
        say(f"{task.glue.folder}:")
        results.append(Run(own, command, baselines=True).execute())
    summary = {
        "task": "glue",
        "model": public_name(settings.model),
        "absent": [task.glue.folder for task in absent],
        "tasks": {
            task.name: {key: getattr(result, key) for key in ("scores", "comparison", "data", "seconds")}
            for task, result in zip(present, results, strict=True)
        },
        "published": PUBLISHED,
        "command": command,
        "seconds": round(sum(result.seconds for result in results), 2),
    }
    if is_main():
        _write(settings, _table(present, results, settings), summary)
        if settings.submission:
            _submit(output)
    wait_for_everyone()


def _tasks(settings: FinetuneSettings) -> tuple[list[GlueTask], list[GlueTask]]:
    """Return the tasks that are available and those that are not."""
    refuse_own_file_flags(settings)
    if settings.data is not None and not Path(settings.data).is_dir():
        raise UserError(f"--data {settings.data}: no such folder; name the one that holds {_folders(GLUE)}")
    present = [task for task in GLUE if is_present(task.glue, settings.data)]
    if not present:
        raise UserError(f"--data {settings.data}: holds none of GLUE's folders ({_folders(GLUE)}); name their parent")
    return present, [task for task in GLUE if task not in present]


def _folders(tasks: Sequence[GlueTask]) -> str:
    return ", ".join(task.glue.folder for task in tasks)


def _table(tasks: Sequence[GlueTask], results: Sequence[Results], settings: FinetuneSettings) -> list[tuple[str, ...]]:
    """Return a line for each task and metric, a column for each method; the last line is GLUE's mean over tasks."""
    names = [row["name"] for row in results[0].comparison]  # majority class and mean are both constants
    compared = [next((known for known in ("TF-IDF", "from scratch") if known in name), "constant") for name in names]
    lines: list[tuple[str, ...]] = [("task", "metric", row_name(settings), *compared, *PUBLISHED, "minutes")]
    means: list[list[float]] = []  # by task and method, over metrics
    for task, result in zip(tasks, results, strict=True):
        measured = [result.scores, *(row["scores"] for row in result.comparison)]
        columns = [[each for metrics in scores.values() for each in metrics.values()] for scores in measured]
        published = [scores[task.glue.folder] for scores in PUBLISHED.values()]
        columns += [[{"mean": value / 100, "std": None} for value in scores] for scores in published]
        means.append([fmean(each["mean"] for each in column) for column in columns])
        minutes = f"{result.seconds / 60:.1f}"
        for split, metrics in result.scores.items():
            for metric in metrics:
                cells = [spread(**column.pop(0)) for column in columns]
                lines.append((task.glue.folder + SUFFIXES.get(split, ""), metric, *cells, minutes))
                minutes = ""
    total = sum(result.seconds for result in results) / 60
    return [*lines, (f"mean of {len(tasks)}", "", *map(percent, map(fmean, zip(*means, strict=True))), f"{total:.1f}")]


def _write(settings: FinetuneSettings, cells: list[tuple[str, ...]], summary: dict[str, Any]) -> None:
    markdown = f"# GLUE: {escape(summary['model'])}\n\n{markdown_table(cells[0], cells[1:])}\n\n{NOTE}\n"
    if summary["absent"]:
        markdown += f"\nAbsent: {', '.join(summary['absent'])}.\n"
    markdown += f"\n```\n{escape(summary['command'], 'block')}\n```\n"
    table = Path(settings.output, "glue.md")
    atomic_write_json(table.with_name(RESULTS_FILE), summary)
    for path in (table, settings.report):
        if path is not None:
            atomic_write_text(path, markdown)
    print(f"\n{text_table(cells)}\n\n{NOTE}\ntable: {table}")


def _submit(output: Path) -> None:
    """Pack the answers of all tasks, and print the files that are missing."""
    path, files = output / "submission.zip", {file.name: file for file in output.glob("*/submission/*.tsv")}
    with atomic_file(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.write(files[name], name)
    expected = [f"{part.name}.tsv" for task in GLUE for part in task.glue.test_parts]
    missing = ", ".join(name for name in expected if name not in files)
    print(f"submission: {path}" + (f"; it lacks {missing}, and the server requires all files" if missing else ""))
