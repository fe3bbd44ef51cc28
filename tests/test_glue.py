"""Protects GLUE: every task's official files are read as they are, the table holds what was measured, and the zip is
what the server takes."""

import csv
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from test_finetune import BAD, GOOD, TOY_FLAGS, toy

from finetune.cli import main
from finetune.glue import load_test
from finetune.suite import PUBLISHED
from finetune.tasks import TASKS, load_task

__all__ = ["toy"]  # the fixture

GLUE = {task.glue.folder: task for task in TASKS.values() if task.glue is not None}
HEADERS = {
    "SST-2": "sentence\tlabel",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "WNLI": "index\tsentence1\tsentence2\tlabel",
}
MNLI = "index\tpromptID\tpairID\tgenre\ts1b\ts2b\ts1p\ts2p\tsentence1\tsentence2"
TEXTS = {"sentence", "sentence1", "sentence2", "question", "question1", "question2", "#1 String", "#2 String"}


def cells(header: str, number: int, label: str | None, text: str) -> str:
    """A row for `header`, which may lack the label's column."""
    columns = header.lstrip("\ufeff").split("\t")
    values = {column: f"{text} {column[-1]}" if column in TEXTS else str(number) for column in columns}
    values |= {column: label for column in ("label", "Quality", "score", "is_duplicate", "gold_label")}
    return "\t".join(values[column] for column in columns)


def write_task(root: Path, folder: str, rows: int = 40) -> None:
    """Train, dev and test files of one task: good words for the task's first label, bad ones for the others."""
    task, target = GLUE[folder], root / folder
    target.mkdir(parents=True)
    labels = task.glue.file_labels or ("0.500", "4.250")

    def write(path: Path, header: str, count: int, labelled: bool, shown: bool = True) -> None:
        lines = [header] if shown else []
        for number in range(count):
            label = labels[number % len(labels)]
            text = f'{(GOOD if number % len(labels) == 0 else BAD)[number % 8]} "plain{number % 24}'
            if folder == "CoLA" and labelled:
                lines.append(f"gj04\t{label}\t*\t{text}")
            else:
                lines.append(cells(header, number, label if labelled else None, text))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    if folder == "MNLI":
        write(target / "train.tsv", f"{MNLI}\tlabel1\tgold_label", rows, True)
        for name in ("matched", "mismatched"):
            write(target / f"dev_{name}.tsv", f"{MNLI}\tlabel1\tlabel2\tgold_label", rows // 2, True)
            write(target / f"test_{name}.tsv", MNLI, 6, False)
        (root / "diagnostic").mkdir()
        write(root / "diagnostic" / "diagnostic.tsv", "index\tsentence1\tsentence2", 5, False)
        return
    header = HEADERS.get(folder, "")
    write(target / "train.tsv", header, rows, True, shown=folder != "CoLA")
    write(target / "dev.tsv", header, rows // 2, True, shown=folder != "CoLA")
    unlabelled = [column for column in header.split("\t") if column.lstrip("\ufeff") not in ("Quality",)]
    kept = [column for column in unlabelled if column not in ("label", "score", "is_duplicate", "qid1", "qid2")]
    first = [] if kept and kept[0] in ("index", "id") else ["index"]
    write(target / "test.tsv", "\t".join(first + (kept if header else ["sentence"])), 6, False)


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    for name in GLUE:
        write_task(folder, name)
    return folder


@pytest.mark.parametrize("folder", GLUE)
def test_each_tasks_own_files_are_read(folder, glue):
    task = GLUE[folder]
    splits = load_task(task, str(glue))
    reported = {"MNLI": {"dev_matched": 20, "dev_mismatched": 20}}.get(folder, {"dev": 20})
    trained = 37 if folder == "SST-2" else 38  # where rows that equal a sentence held out are left out too
    assert splits.describe()["counts"] == {"train": trained, "validation": 2, **reported}
    first = next(iter(splits.reported.values()))
    assert all(len(example.texts) == len(task.text_columns) for example in first)
    assert first[0].texts[0].startswith('good0 "plain0'), "quotes are text, not quoting"
    expected = [0.5, 4.25] if folder == "STS-B" else list(range(len(task.kind.label_names)))
    assert [example.label for example in first[: len(expected)]] == expected
    if folder == "QNLI":
        assert first[0].texts == ('good0 "plain0 n', 'good0 "plain0 e'), "question, then sentence"
    test = load_test(task.glue, task.text_columns, str(glue))
    sizes = {"MNLI": {"MNLI-m": 6, "MNLI-mm": 6, "AX": 5}}.get(folder, {folder: 6})
    assert {name: len(rows) for name, rows in test.items()} == sizes
    assert [index for index, _ in next(iter(test.values()))][:3] == ["0", "1", "2"]


@pytest.mark.parametrize("folder", ["MNLI", "QNLI", "STS-B"])
def test_the_hubs_copy_is_read_the_same(folder, glue, monkeypatch):
    """Its rows as they are known to be, with the texts of the files."""
    task = GLUE[folder]
    whole = load_task(task, str(glue))
    parts = {part.hub_split: whole.reported[part.name] for part in task.glue.dev}

    def rows(path: str, config: str, split: str) -> list[dict]:
        assert path == "nyu-mll/glue" and config in (task.glue.hub_config, "ax")
        examples = parts.get(split) or [*whole.validation, *whole.train]
        return [
            dict(zip(task.text_columns, e.texts, strict=True)) | {"label": e.label, "idx": i}
            for i, e in enumerate(examples)
        ]

    monkeypatch.setattr("finetune.glue.datasets.load_dataset", rows)
    loaded = load_task(task, None)
    assert loaded.reported == whole.reported
    assert len(loaded.train) == len(whole.train) and len(loaded.validation) == len(whole.validation)
    test = load_test(task.glue, task.text_columns, None)
    assert list(test) == [part.name for part in task.glue.test_parts]
    assert all(answers[0][0] == "0" and answers[0][1].label is None for answers in test.values())


def test_mrpc_as_microsoft_ships_it(glue, tmp_path):
    """The same splits as GLUE's own files, from the original ones and the list of dev pairs."""
    (tmp_path / "MRPC").mkdir()
    lines = {
        name: (glue / "MRPC" / f"{name}.tsv").read_text(encoding="utf-8").splitlines() for name in ("train", "dev")
    }
    renumbered = [line.split("\t") for line in lines["dev"][1:]]
    renumbered = ["\t".join([row[0], f"9{row[1]}", f"9{row[2]}", *row[3:]]) for row in renumbered]
    (tmp_path / "MRPC" / "msr_paraphrase_train.txt").write_text("\n".join([*lines["train"], *renumbered]) + "\n")
    ids = ["\t".join(row.split("\t")[1:3]) for row in renumbered]
    (tmp_path / "MRPC" / "dev_ids.tsv").write_text("\n".join(ids) + "\n")
    assert load_task(GLUE["MRPC"], str(tmp_path)) == load_task(GLUE["MRPC"], str(glue))


def test_qqps_broken_rows_are_left_out_and_counted(glue, tmp_path, capsys):
    write_task(tmp_path, "QQP")
    with (tmp_path / "QQP" / "train.tsv").open("a") as stream:
        stream.write("7\tbroken\n")
    assert load_task(GLUE["QQP"], str(tmp_path)) == load_task(GLUE["QQP"], str(glue))
    assert "1 broken rows are left out" in capsys.readouterr().err


SUITE = ("CoLA", "STS-B", "MNLI")


@pytest.fixture(scope="module")
def suite(toy, tmp_path_factory) -> tuple[Path, list[str]]:
    """--task glue on three tasks: (output, the command's arguments)."""
    folder = tmp_path_factory.mktemp("suite")
    for name in SUITE:
        write_task(folder / "data", name)
    places = ["--model", toy / "model", "--task", "glue", "--data", folder / "data", "--output", folder / "out"]
    arguments = [*map(str, places), *TOY_FLAGS, "--epochs", "1", "--seeds", "2", "--submission"]
    assert main(arguments) == 0
    return folder / "out", arguments


def test_the_table_holds_every_tasks_own_figures_and_the_published(suite):
    text = (suite[0] / "glue.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows[0][:2] == ["task", "metric"] and rows[0][3:] == ["constant", "TF-IDF", *PUBLISHED, "minutes"]
    lines = [("CoLA", "matthews_correlation"), ("STS-B", "pearson"), ("STS-B", "spearmanr"), ("MNLI-m", "accuracy")]
    assert [tuple(row[:2]) for row in rows[2:]] == [*lines, ("MNLI-mm", "accuracy"), ("mean of 3", "")]
    figures = {}
    for name in SUITE:
        results = json.loads((suite[0] / name / "results.json").read_text())
        for split, scores in results["scores"].items():
            figures |= {(name, split, metric): score for metric, score in scores.items()}
    for row, score in zip(rows[2:], figures.values(), strict=False):
        assert row[2] == f"{100 * score['mean']:.2f} ± {100 * score['std']:.2f}"
    assert [row[5] for row in rows[2:-1]] == ["0.00", "74.30", "73.60", "70.20", "70.30"]
    assert float(rows[-1][5]) == pytest.approx((0 + (74.3 + 73.6) / 2 + (70.2 + 70.3) / 2) / 3, abs=0.01)
    means = [score["mean"] for score in figures.values()]
    ours = (means[0] + (means[1] + means[2]) / 2 + (means[3] + means[4]) / 2) / 3
    assert float(rows[-1][2]) == pytest.approx(100 * ours, abs=0.01)
    assert "hidden test" in text and "Not there: SST-2" in text
    assert (suite[0] / "glue.txt").read_text().split()[:2] == ["task", "metric"]


def test_the_submission_is_in_the_servers_format(suite):
    with zipfile.ZipFile(suite[0] / "submission.zip") as archive:
        files = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    assert sorted(files) == ["AX.tsv", "CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "STS-B.tsv"]
    assert {lines[0] for lines in files.values()} == {"index\tprediction"}
    answers = {name: [line.split("\t") for line in lines[1:]] for name, lines in files.items()}
    assert [index for index, _ in answers["CoLA.tsv"]] == [str(i) for i in range(6)] and len(answers["AX.tsv"]) == 5
    assert {answer for _, answer in answers["CoLA.tsv"]} <= {"0", "1"}
    assert {answer for _, answer in answers["AX.tsv"]} <= set(GLUE["MNLI"].glue.file_labels)
    assert all(0 <= float(answer) <= 5 for _, answer in answers["STS-B.tsv"])


def test_mnli_reports_both_dev_sets_row_by_row(suite):
    with (suite[0] / "MNLI" / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["split"] for row in rows] == ["dev_matched"] * 20 + ["dev_mismatched"] * 20
    results = json.loads((suite[0] / "MNLI" / "results.json").read_text())
    best = results["seeds"][results["best_seed"] - 1]
    for split, scores in best["scores"].items():
        own = [row for row in rows if row["split"] == split]
        assert scores["accuracy"] == pytest.approx(sum(row["label"] == row["prediction"] for row in own) / len(own))
    card = (suite[0] / "MNLI" / "README.md").read_text(encoding="utf-8")
    assert "model-index:" in card and "split: dev_mismatched" in card and "config: mnli" in card


def test_resume_runs_only_what_is_not_finished(suite, capsys):
    output, arguments = suite
    before = {name: (output / name / "results.json").read_bytes() for name in SUITE}
    table = (output / "glue.md").read_text().splitlines()[:12]
    shutil.rmtree(output / "STS-B")
    assert main([*arguments, "--resume"]) == 0
    printed = capsys.readouterr().err
    assert "CoLA: finished before" in printed and "STS-B: finished" not in printed
    for name in ("CoLA", "MNLI"):
        assert (output / name / "results.json").read_bytes() == before[name]
    again = json.loads((output / "STS-B" / "results.json").read_text())
    assert again["scores"] == json.loads(before["STS-B"])["scores"], "the same figures as without the interruption"
    assert [line.rsplit("|", 2)[0] for line in (output / "glue.md").read_text().splitlines()[:12]] == [
        line.rsplit("|", 2)[0] for line in table
    ]


def refused(arguments: list[str], capsys, *fragments: str) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert all(fragment in error for fragment in fragments), error


def test_resume_with_other_settings_or_nothing_to_run_is_refused(suite, tmp_path, capsys):
    _, arguments = suite
    refused([*arguments, "--resume", "--seeds", "3"], capsys, "results.json", "seeds 2", "now it is 3")
    refused(arguments, capsys, "--output", "already holds something")
    elsewhere = [*arguments, "--output", str(tmp_path / "new")]
    refused([*elsewhere, "--data", str(tmp_path)], capsys, "--data", "CoLA, SST-2")
    refused([*elsewhere, "--data", str(tmp_path / "no")], capsys, "--data", "no such folder")
    refused([*elsewhere, "--text", "x"], capsys, "--text", "leave it out")
    refused([*elsewhere, "--task", "stsb", "--label_smoothing", "0.1"], capsys, "--label_smoothing")
    assert list(tmp_path.iterdir()) == []
