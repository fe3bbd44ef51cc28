"""`--task glue`: every GLUE task that is available, one table, and a submission for the server."""

from __future__ import annotations

import dataclasses
import os
import statistics
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.common.files import atomic_write_json, atomic_write_text
from hf_tiny_transformer.common.processes import is_main, say, wait_for_everyone
from hf_tiny_transformer.publish.card import escape, markdown_table
from hf_tiny_transformer.publish.facts import public_name

from .data.glue import is_present
from .report import RESULTS_FILE, Results, Spread, text_table
from .run import Run, check_resumable, output_paths, row_name
from .settings import FinetuneSettings
from .tasks import OWN_FILE_FLAGS, TASKS, Task

# github.com/google-research/bert, README of 11 March 2020, in percent: on GLUE's hidden test sets
PUBLISHED = {
    "BERT-Tiny": {
        "CoLA": (0.0,),
        "SST-2": (83.2,),
        "MRPC": (81.1, 71.1),
        "STS-B": (74.3, 73.6),
        "QQP": (62.2, 83.4),
        "MNLI": (70.2, 70.3),
        "QNLI": (81.5,),
        "RTE": (57.2,),
        "WNLI": (62.3,),
    },
    "BERT-Mini": {
        "CoLA": (0.0,),
        "SST-2": (85.9,),
        "MRPC": (81.1, 71.8),
        "STS-B": (75.4, 73.3),
        "QQP": (66.4, 86.2),
        "MNLI": (74.8, 74.3),
        "QNLI": (84.1,),
        "RTE": (57.9,),
        "WNLI": (62.3,),
    },
}
NOTE = (
    "Ours, the constant and TF-IDF: on dev, mean ± standard deviation over seeds, in percent. BERT-Tiny (2 layers of "
    "128) and BERT-Mini (4 of 256): as published, on GLUE's hidden test sets, with the best of 20 settings per task; "
    "dev and test differ, most of all in WNLI."
)


def run_suite(settings: FinetuneSettings, command: str) -> dict[str, Any]:
    """Run the tasks one after the other, each in its own folder of `settings.output`; table and submission come last.

    Returns:
        The content of results.json.

    Raises:
        UserError: Bad input. Finished tasks stay, and --resume continues after them.
    """
    output, report = output_paths(settings)
    present, absent = _tasks(settings)
    of_tasks = [
        dataclasses.replace(settings, task=task.name, output=str(output / task.glue.folder), report=None)
        for task in present
    ]
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
        _write(output, report, _table(present, results, settings), summary)
        if settings.submission:
            _submit(output)
    wait_for_everyone()
    return summary


def _tasks(settings: FinetuneSettings) -> tuple[list[Task], list[Task]]:
    """Return the tasks that are available and those that are not."""
    for flag in OWN_FILE_FLAGS:
        if getattr(settings, flag) is not None:
            raise UserError(f"--{flag}: GLUE's tasks have their own columns and splits; leave it out")
    if settings.label_smoothing:
        raise UserError("--label_smoothing is for tasks with one label per text, and STS-B is not one; leave it out")
    tasks = [task for task in TASKS.values() if task.glue is not None]
    if settings.data is not None and not Path(settings.data).is_dir():
        raise UserError(f"--data {settings.data}: no such folder; name the one that holds {_folders(tasks)}")
    present = [task for task in tasks if is_present(task.glue, settings.data)]
    if not present:
        raise UserError(f"--data {settings.data}: holds none of GLUE's folders ({_folders(tasks)}); name their parent")
    return present, [task for task in tasks if task not in present]


def _folders(tasks: Sequence[Task]) -> str:
    return ", ".join(task.glue.folder for task in tasks)


def _table(tasks: Sequence[Task], results: Sequence[Results], settings: FinetuneSettings) -> list[tuple[str, ...]]:
    """Return a line for each task and metric, a column for each method; the last line is GLUE's mean over tasks."""
    compared = [_heading(row["name"]) for row in results[0].comparison]
    lines: list[tuple[str, ...]] = [("task", "metric", row_name(settings), *compared, *PUBLISHED, "minutes")]
    columns: list[Callable[[Task, Results], list[Spread]]] = [lambda task, result: _figures(result.scores)]
    columns += [lambda task, result, i=i: _figures(result.comparison[i]["scores"]) for i in range(len(compared))]
    columns += [
        lambda task, result, name=name: [Spread(value / 100, None) for value in PUBLISHED[name][task.glue.folder]]
        for name in PUBLISHED
    ]
    figures = [[column(task, result) for column in columns] for task, result in zip(tasks, results, strict=True)]
    for task, result, of_task in zip(tasks, results, figures, strict=True):
        for i, (name, metric) in enumerate(_names(task, result)):
            minutes = f"{result.seconds / 60:.1f}" if i == 0 else ""
            lines.append((name, metric, *(str(spreads[i]) for spreads in of_task), minutes))
    means = [
        statistics.fmean(statistics.fmean(spread.mean for spread in of_task[i]) for of_task in figures)
        for i in range(len(columns))
    ]
    total = sum(result.seconds for result in results) / 60
    lines.append((f"mean of {len(tasks)}", "", *(f"{100 * mean:.2f}" for mean in means), f"{total:.1f}"))
    return lines


def _heading(name: str) -> str:
    """Return what a method is called in all tasks: majority class and mean are both constants."""
    if name.startswith("TF-IDF"):
        return "TF-IDF"
    return "from scratch" if "from scratch" in name else "constant"


def _figures(scores: dict[str, dict[str, Any]]) -> list[Spread]:
    return [Spread(**spread) for metrics in scores.values() for spread in metrics.values()]


def _names(task: Task, result: Results) -> Iterator[tuple[str, str]]:
    """Return task and metric of each line; MNLI is reported on two splits, called m and mm."""
    for split, metrics in result.scores.items():
        suffix = {"dev_matched": "-m", "dev_mismatched": "-mm"}.get(split, "")
        yield from ((task.glue.folder + suffix, metric) for metric in metrics)


def _write(output: Path, report: Path | None, cells: list[tuple[str, ...]], summary: dict[str, Any]) -> None:
    text = text_table(cells)
    markdown = f"# GLUE: {escape(summary['model'])}\n\n{markdown_table(cells[0], cells[1:])}\n\n{NOTE}\n"
    if summary["absent"]:
        markdown += f"\nAbsent: {', '.join(summary['absent'])}.\n"
    markdown += f"\n```\n{escape(summary['command'], 'block')}\n```\n"
    print(f"\n{text}\n\n{NOTE}")
    atomic_write_json(output / RESULTS_FILE, summary)
    for path in [output / "glue.md", *([report] if report else [])]:
        atomic_write_text(path, markdown)
    atomic_write_text(output / "glue.txt", f"{text}\n\n{NOTE}\n")
    print(f"table: {output / 'glue.md'}")


def _submit(output: Path) -> None:
    """Pack the answers of all tasks, and say which files the server would miss."""
    path, files = output / "submission.zip", {file.name: file for file in sorted(output.glob("*/submission/*.tsv"))}
    staging = path.with_name(f".{path.name}")
    with zipfile.ZipFile(staging, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.write(files[name], name)
    os.replace(staging, path)
    expected = [f"{part.name}.tsv" for task in TASKS.values() if task.glue for part in task.glue.test_parts]
    missing = [name for name in expected if name not in files]
    note = f"; it lacks {', '.join(missing)}, and the server accepts complete ones only" if missing else ""
    print(f"submission: {path}{note}")
