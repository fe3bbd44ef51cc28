"""What BLiMP scores come to, and the files that hold them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import numpy as np

from hf_tiny_transformer.cards import escape
from hf_tiny_transformer.runs import UserError, atomic_directory, atomic_write_json, atomic_write_text

from ..environment import device, versions
from ..inference import FinishedModel
from ..report import markdown_table, text_table
from .baselines import Scores
from .blimp import Paradigm, fingerprint
from .cli import ZeroShotSettings


def collect_results(
    settings: ZeroShotSettings,
    opened: FinishedModel,
    scored_by: str,
    paradigms: Sequence[Paradigm],
    scores: Scores,
    baselines: dict[str, Scores],
    seconds: float,
    command: str,
) -> dict:
    """What results.json holds. Accuracies lie between 0 and 1: of a file the share of pairs whose good sentence scores
    higher, where a tie counts half; of a field, a term and the whole the mean over its files.

    Args:
        scores: the model's.
        baselines: by name, on the same pairs.
        seconds: what scoring took.
    """
    accuracies = _accuracies(paradigms, scores)
    files = accuracies["files"]
    pairs = sum(record["pairs"] for record in files.values())
    return {
        "task": "blimp",
        "model": settings.model,
        "scored_by": scored_by,
        **accuracies,
        "baselines": {name: _accuracies(paradigms, its_scores) for name, its_scores in baselines.items()},
        "pairs": pairs,
        "ties": sum(record["ties"] for record in files.values()),
        "settings": asdict(settings),
        "parameters": opened.model.num_parameters(),
        "data": {"files": len(files), "pairs": pairs, "sha256": fingerprint(paradigms)},
        "versions": versions(),
        "device": device(),
        "command": command,
        "seconds": round(seconds, 2),
        "pairs_per_second": round(pairs / seconds, 1),
    }


def write_results(output: Path, results: dict, paradigms: Sequence[Paradigm], scores: Scores) -> None:
    """All files or none: results.json, report.md, predictions.csv.

    Raises:
        UserError: the disk refuses.
    """
    try:
        with atomic_directory(output) as staging:
            atomic_write_json(staging / "results.json", results)
            atomic_write_text(staging / "report.md", markdown_report(results))
            _write_predictions(staging / "predictions.csv", paradigms, scores)
    except OSError as error:
        raise UserError(f"--output {output}: can't be written ({error.strerror or error}); free or change it") from None


def summary(results: dict) -> str:
    """The whole and the terms, for a terminal."""
    rows = [["", "files", *_heads(results)], ["all", str(results["data"]["files"]), *_percent(results, ())]]
    rate = f"{results['pairs']:,} pairs in {results['seconds']:.0f} s, {results['pairs_per_second']:.0f} pairs/s"
    return f"{text_table([*rows, *_group(results, 'terms')])}\n{rate}; {results['ties']} ties; {results['scored_by']}"


def markdown_report(results: dict) -> str:
    """Tables by field, by term and by file, the baselines beside the model."""
    heads = _heads(results)
    by_file = [
        [name, row["term"], row["field"], *_percent(results, ("files", name))] for name, row in results["files"].items()
    ]
    sections = [
        f"# BLiMP: {100 * results['accuracy']:.2f}",
        f"`{escape(results['model'], 'code')}`{', fresh weights' if results['settings']['from_scratch'] else ''}: the "
        f"mean over {results['data']['files']} files of the share of pairs, in %, whose grammatical sentence scores "
        f"higher by {results['scored_by']} (a tie counts half; chance is 50). {results['pairs']:,} pairs, "
        f"{results['ties']} ties, {results['seconds']:.0f} s on {results['device']}.",
        "\n".join(f"- {escape(name)}: {100 * row['accuracy']:.2f}" for name, row in results["baselines"].items()),
        markdown_table([["field", "files", *heads], *_group(results, "fields")]),
        markdown_table([["term", "files", *heads], *_group(results, "terms")]),
        markdown_table([["file", "term", "field", *heads], *by_file]),
        f"Made by:\n\n```\n{escape(results['command'], 'block')}\n```\n",
    ]
    return "\n\n".join(sections)


def _heads(results: dict) -> list[str]:
    return [f"{name}, %" for name in ("model", *results["baselines"])]


def _group(results: dict, group: str) -> list[list[str]]:
    return [[name, str(row["files"]), *_percent(results, (group, name))] for name, row in results[group].items()]


def _percent(results: dict, path: tuple[str, ...]) -> list[str]:
    """The model's accuracy under `path` and the baselines', in %."""
    cells = []
    for found in (results, *results["baselines"].values()):
        for key in path:
            found = found[key]
        cells.append(f"{100 * found['accuracy']:.2f}")
    return cells


def _file_record(paradigm: Paradigm, scores: np.ndarray) -> dict:
    good, bad = scores.T
    ties = int((good == bad).sum())
    accuracy = float(((good > bad).sum() + ties / 2) / len(scores))
    return {"accuracy": accuracy, "pairs": len(scores), "ties": ties, "field": paradigm.field, "term": paradigm.term}


def _accuracies(paradigms: Sequence[Paradigm], scores: Scores) -> dict:
    files = {paradigm.name: _file_record(paradigm, scores[paradigm.name]) for paradigm in paradigms}
    return {
        "accuracy": fmean(record["accuracy"] for record in files.values()),
        "fields": _means(files, "field"),
        "terms": _means(files, "term"),
        "files": files,
    }


def _means(files: dict[str, dict], key: str) -> dict[str, dict]:
    groups: dict[str, list[float]] = {}
    for record in files.values():
        groups.setdefault(record[key], []).append(record["accuracy"])
    return {name: {"accuracy": fmean(values), "files": len(values)} for name, values in sorted(groups.items())}


def _write_predictions(path: Path, paradigms: Sequence[Paradigm], scores: Scores) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "index", "sentence_good", "sentence_bad", "score_good", "score_bad"])
        for paradigm in paradigms:
            for index, (pair, row) in enumerate(zip(paradigm.pairs, scores[paradigm.name], strict=True)):
                writer.writerow([paradigm.name, index, *pair, *(f"{score:.6f}" for score in row)])
