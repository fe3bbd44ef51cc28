"""Protects --task glue: the table holds what was measured, and the zip is what the server accepts."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from toys import BAD, DRAWS, GOOD, assert_same_run, predictions_of, results_of, run

from finetune import train
from finetune.suite import PUBLISHED
from finetune.tasks import TASKS

SUITE = ("CoLA", "STS-B", "MNLI")
PAIR = "index\tpromptID\tpairID\tgenre\ts1b\ts2b\ts1p\ts2p\tsentence1\tsentence2"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
LABELS = {"CoLA": ("0", "1"), "STS-B": ("0.500", "4.250"), "MNLI": TASKS["mnli"].glue.file_labels}


def write(path: Path, header: str, count: int, labels: tuple[str, ...] = ()) -> None:
    """Good words for the first label, bad ones for the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [] if labels and path.parent.name == "CoLA" else [header]
    for i in range(count):
        text = f"{(BAD if labels and i % len(labels) else GOOD)[i % 8]} plain{i % 24}"
        label = labels[i % len(labels)] if labels else ""
        if labels and path.parent.name == "CoLA":
            lines.append(f"gj04\t{label}\t*\t{text}")
            continue
        known = {"sentence": text, "sentence1": f"{text} 1", "sentence2": f"{text} 2", "score": label}
        known |= {"gold_label": label}
        lines.append("\t".join(known.get(column, str(i)) for column in header.split("\t")))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_suite(folder: Path, names: tuple[str, ...] = SUITE) -> Path:
    for name, header, dev, test in (
        ("CoLA", "index\tsentence", ["dev"], ["test"]),
        ("STS-B", STSB, ["dev"], ["test"]),
        ("MNLI", PAIR, ["dev_matched", "dev_mismatched"], ["test_matched", "test_mismatched"]),
    ):
        if name in names:
            labelled = f"{header}\t{'score' if name == 'STS-B' else 'gold_label'}"
            write(folder / name / "train.tsv", labelled, 40, LABELS[name])
            for split in dev:
                write(folder / name / f"{split}.tsv", labelled, 20, LABELS[name])
            for split in test:
                write(folder / name / f"{split}.tsv", header, 6)
    if "MNLI" in names:
        write(folder / "diagnostic" / "diagnostic.tsv", "index\tsentence1\tsentence2", 5)
    return folder


@pytest.fixture(scope="module")
def suite(toy, tmp_path_factory) -> tuple[Path, list]:
    """--task glue on three tasks: (output, the command's arguments)."""
    folder = tmp_path_factory.mktemp("suite")
    places = ["--model", toy / "stock", "--task", "glue", "--data", write_suite(folder / "data")]
    arguments = [*places, "--output", folder / "out", "--epochs", 1, "--seeds", 2, "--batch_size", 16, "--submission"]
    assert run(*arguments) == 0
    return folder / "out", arguments


@pytest.mark.slow
def test_the_table_holds_every_tasks_own_figures_and_the_published(suite):
    text = (suite[0] / "glue.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert rows[0][:2] == ["task", "metric"] and rows[0][3:] == ["constant", "TF-IDF", *PUBLISHED, "minutes"]
    lines = [("CoLA", "matthews_correlation"), ("STS-B", "pearson"), ("STS-B", "spearmanr"), ("MNLI-m", "accuracy")]
    assert [tuple(row[:2]) for row in rows[2:]] == [*lines, ("MNLI-mm", "accuracy"), ("mean of 3", "")]
    scores = [scores for name in SUITE for scores in results_of(suite[0] / name)["scores"].values()]
    figures = [score for of_split in scores for score in of_split.values()]
    for row, score in zip(rows[2:], figures, strict=False):
        assert row[2] == f"{100 * score['mean']:.2f} ± {100 * score['std']:.2f}"
    assert [row[5] for row in rows[2:-1]] == ["0.00", "74.30", "73.60", "70.20", "70.30"]
    assert float(rows[-1][5]) == pytest.approx((0 + (74.3 + 73.6) / 2 + (70.2 + 70.3) / 2) / 3, abs=0.01)
    means = [score["mean"] for score in figures]
    ours = (means[0] + (means[1] + means[2]) / 2 + (means[3] + means[4]) / 2) / 3
    assert float(rows[-1][2]) == pytest.approx(100 * ours, abs=0.01)
    assert "hidden test" in text and "Absent: SST-2" in text


def test_the_submission_is_in_the_servers_format(suite):
    with zipfile.ZipFile(suite[0] / "submission.zip") as archive:
        files = {name: archive.read(name).decode().splitlines() for name in archive.namelist()}
    assert sorted(files) == ["AX.tsv", "CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "STS-B.tsv"]
    assert {lines[0] for lines in files.values()} == {"index\tprediction"}
    answers = {name: [line.split("\t") for line in lines[1:]] for name, lines in files.items()}
    assert [index for index, _ in answers["CoLA.tsv"]] == [str(i) for i in range(6)] and len(answers["AX.tsv"]) == 5
    assert {answer for _, answer in answers["CoLA.tsv"]} <= {"0", "1"}
    assert {answer for _, answer in answers["AX.tsv"]} <= set(LABELS["MNLI"])
    assert all(0 <= float(answer) <= 5 for _, answer in answers["STS-B.tsv"])


def test_mnli_reports_both_dev_sets_row_by_row(suite):
    rows, results = predictions_of(suite[0] / "MNLI"), results_of(suite[0] / "MNLI")
    assert [row["split"] for row in rows] == ["dev_matched"] * 20 + ["dev_mismatched"] * 20
    for split, scores in results["seeds"][results["best_seed"] - 1]["scores"].items():
        own = [row for row in rows if row["split"] == split]
        assert scores["accuracy"] == pytest.approx(sum(row["label"] == row["prediction"] for row in own) / len(own))
    card = (suite[0] / "MNLI" / "README.md").read_text(encoding="utf-8")
    assert "model-index:" in card and "split: dev_mismatched" in card and "config: mnli" in card


@pytest.mark.slow
def test_resume_runs_only_what_is_not_finished(suite, capsys):
    output, arguments = suite
    before = {name: (output / name / "results.json").read_bytes() for name in SUITE}
    table = [line.rsplit("|", 2)[0] for line in (output / "glue.md").read_text().splitlines()[:12]]
    shutil.rmtree(output / "STS-B")
    assert run(*arguments, "--resume") == 0
    printed = capsys.readouterr().err
    assert "CoLA: finished before" in printed and "STS-B: finished" not in printed
    assert all((output / name / "results.json").read_bytes() == before[name] for name in ("CoLA", "MNLI"))
    assert results_of(output / "STS-B")["scores"] == json.loads(before["STS-B"])["scores"]
    assert [line.rsplit("|", 2)[0] for line in (output / "glue.md").read_text().splitlines()[:12]] == table


def refused(arguments: list, capsys, *fragments: str) -> None:
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert all(fragment in error for fragment in fragments), error


def test_resume_with_other_settings_or_nothing_to_run_is_refused(suite, tmp_path, capsys):
    _, arguments = suite
    refused([*arguments, "--resume", "--seeds", "3"], capsys, "results.json", "seeds 2", "now it is 3")
    refused(arguments, capsys, "--output", "is not empty")
    elsewhere = [*arguments, "--output", tmp_path / "new"]
    refused([*elsewhere, "--data", tmp_path], capsys, "--data", "CoLA, SST-2")
    refused([*elsewhere, "--data", tmp_path / "no"], capsys, "--data", "no such folder")
    refused([*elsewhere, "--text", "x"], capsys, "--text", "leave it out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_suite_continues_within_a_task(toy, tmp_path, monkeypatch, capsys):
    data = write_suite(tmp_path / "data", ("CoLA", "STS-B"))
    flags = ["--model", toy / "stock", "--task", "glue", "--data", data, "--seeds", 2, "--epochs", 1, *DRAWS]
    whole, stopped = ([*flags, "--output", tmp_path / name] for name in ("whole", "out"))
    assert run(*whole) == 0
    write_result, count = train.write_result, []

    def interrupt(directory, result):
        write_result(directory, result)
        count.append(1)
        if len(count) == 6:  # trained and scored, for two seeds of CoLA and one of STS-B
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "write_result", interrupt)
        assert run(*stopped) == 130
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["CoLA", "STS-B.unfinished"]
    refused([*stopped, "--resume", "--seeds", "3"], capsys, "CoLA", "seeds 2", "now it is 3")
    assert run(*stopped, "--resume") == 0
    printed = capsys.readouterr().err
    assert printed.index("STS-B:") < printed.index("finished before: seed 1") and "CoLA: finished before" in printed
    for name in ("CoLA", "STS-B"):
        assert_same_run(tmp_path / "out" / name, tmp_path / "whole" / name)
    assert not list((tmp_path / "out").glob("*.unfinished"))
