"""`--task glue`: every GLUE task that is there, one table, and a submission for the server."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hf_tiny_transformer.cards import escape, public_name
from hf_tiny_transformer.runs import UserError, atomic_write_json, atomic_write_text

from . import processes
from .environment import quieten
from .experiment import free_paths, row_name, run_experiment
from .glue import is_present
from .report import Spread, markdown_table, text_table
from .resume import earlier_results, say
from .settings import FinetuneSettings
from .submission import pack
from .tasks import OWN_DATA_FLAGS, TASKS, Task

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
    "128) and BERT-Mini (4 of 256): as published, on GLUE's hidden test sets, with the best of 20 settings a task; "
    "dev and test differ, WNLI's most."
)


def run_suite(settings: FinetuneSettings, command: str) -> dict:
    """Runs the tasks one after the other, each into a folder of its own in `settings.output`, where the table and the
    submission are written last. Returns what results.json holds.

    Raises:
        UserError: bad input; what was finished before stays, and --resume goes on after it.
    """
    quieten()
    output, report = free_paths(settings)
    present, absent = _tasks(settings)
    of_tasks = {
        task.glue.folder: dataclasses.replace(
            settings, task=task.name, output=str(output / task.glue.folder), report=None
        )
        for task in present
    }
    if settings.resume:  # other settings than before are refused now, not after hours
        for own in of_tasks.values():
            earlier_results(own)
    say(f"GLUE: {_folders(present)}" + (f"; absent: {_folders(absent)}" if absent else ""))
    results = {}
    for folder, own in of_tasks.items():
        say(f"{folder}:")
        results[own.task] = run_experiment(own, command, baselines=True)
    cells = _table(present, list(results.values()), settings)
    summary = {
        "task": "glue",
        "model": public_name(settings.model),
        "absent": [task.glue.folder for task in absent],
        "tasks": {
            name: {key: result[key] for key in ("scores", "comparison", "data", "seconds")}
            for name, result in results.items()
        },
        "published": PUBLISHED,
        "command": command,
        "seconds": round(sum(result["seconds"] for result in results.values()), 2),
    }
    if processes.is_main():
        _write(output, report, cells, summary, settings.submission)
    processes.wait_for_everyone()
    return summary


def _tasks(settings: FinetuneSettings) -> tuple[list[Task], list[Task]]:
    """The tasks that are there and those that are not."""
    for flag in OWN_DATA_FLAGS:
        if getattr(settings, flag) is not None:
            raise UserError(f"--{flag}: GLUE's tasks bring their own columns and splits; leave it out")
    if settings.label_smoothing:
        raise UserError("--label_smoothing is for tasks with one label a text, and STS-B is none; leave it out")
    tasks = [task for task in TASKS.values() if task.glue is not None]
    if settings.data is not None and not Path(settings.data).is_dir():
        raise UserError(f"--data {settings.data}: no such folder; name the one that holds {_folders(tasks)}")
    present = [task for task in tasks if is_present(task.glue, settings.data)]
    if not present:
        raise UserError(f"--data {settings.data}: none of GLUE's folders is in it ({_folders(tasks)}); name theirs")
    return present, [task for task in tasks if task not in present]


def _folders(tasks: Sequence[Task]) -> str:
    return ", ".join(task.glue.folder for task in tasks)


def _table(tasks: Sequence[Task], results: Sequence[dict], settings: FinetuneSettings) -> list[list[str]]:
    """A line for each task and metric, a column for each method; the last line is GLUE's mean over tasks."""
    compared = [_heading(row["name"]) for row in results[0]["comparison"]]
    lines = [["task", "metric", row_name(settings), *compared, *PUBLISHED, "minutes"]]
    columns: list[Callable[[Task, dict], list[Spread]]] = [lambda task, result: _figures(result)]
    columns += [lambda task, result, i=i: _figures(result["comparison"][i]) for i in range(len(compared))]
    columns += [
        lambda task, result, name=name: [Spread(value / 100, None) for value in PUBLISHED[name][task.glue.folder]]
        for name in PUBLISHED
    ]
    figures = [[column(task, result) for column in columns] for task, result in zip(tasks, results, strict=True)]
    for task, result, of_task in zip(tasks, results, figures, strict=True):
        for i, (name, metric) in enumerate(_names(task, result)):
            minutes = f"{result['seconds'] / 60:.1f}" if i == 0 else ""
            lines.append([name, metric, *(str(spreads[i]) for spreads in of_task), minutes])
    means = [
        statistics.fmean(statistics.fmean(spread.mean for spread in of_task[i]) for of_task in figures)
        for i in range(len(columns))
    ]
    total = sum(result["seconds"] for result in results) / 60
    lines.append([f"mean of {len(tasks)}", "", *(f"{100 * mean:.2f}" for mean in means), f"{total:.1f}"])
    return lines


def _heading(name: str) -> str:
    """What a comparison's rows have in common over the tasks: majority class and mean are both constants."""
    if name.startswith("TF-IDF"):
        return "TF-IDF"
    return "from scratch" if "from scratch" in name else "constant"


def _figures(record: dict) -> list[Spread]:
    return [Spread(**spread) for metrics in record["scores"].values() for spread in metrics.values()]


def _names(task: Task, result: dict) -> Iterator[tuple[str, str]]:
    """MNLI is reported on two splits, which the field calls m and mm."""
    for split, metrics in result["scores"].items():
        suffix = {"dev_matched": "-m", "dev_mismatched": "-mm"}.get(split, "")
        yield from ((task.glue.folder + suffix, metric) for metric in metrics)


def _write(output: Path, report: Path | None, cells: list[list[str]], summary: dict, submission: bool) -> None:
    text = text_table(cells)
    markdown = f"# GLUE: {escape(summary['model'])}\n\n{markdown_table(cells)}\n\n{NOTE}\n"
    if summary["absent"]:
        markdown += f"\nNot there: {', '.join(summary['absent'])}.\n"
    markdown += f"\n```\n{escape(summary['command'], 'block')}\n```\n"
    print(f"\n{text}\n\n{NOTE}")
    atomic_write_json(output / "results.json", summary)
    for path in [output / "glue.md", *([report] if report else [])]:
        atomic_write_text(path, markdown)
    atomic_write_text(output / "glue.txt", f"{text}\n\n{NOTE}\n")
    print(f"table: {output / 'glue.md'}")
    if submission:
        lacking = pack(output / "submission.zip", sorted(output.glob("*/submission")))
        rest = f"; it lacks {', '.join(lacking)}, and the server takes whole ones only" if lacking else ""
        print(f"submission: {output / 'submission.zip'}{rest}")
