"""Protects files of one's own: what they hold is found out and said, no text is on two sides, mistakes are named."""

import csv
import json
from pathlib import Path

import pytest
from test_finetune import BAD, GOOD, PLAIN, TOY_FLAGS, predictions_of, results_of, toy

from finetune.cli import main, parse_settings
from finetune.kinds.sequence import MultiLabel, Regression, SingleLabel
from finetune.own_data import read_own_data

__all__ = ["toy"]  # the fixture

ROWS = [(f"{(GOOD if i % 2 else BAD)[i % 8]} {PLAIN[i % 24]} {PLAIN[i % 7]}", i % 2) for i in range(120)]


def write_csv(path: Path, rows, header=("text", "label"), delimiter=",") -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
    return path


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def read(path: Path, *flags: str):
    required = ["--model", "unused", "--task", path, "--output", "unused", "--text", "text", "--label", "label"]
    return read_own_data(parse_settings([*map(str, required), *map(str, flags)]))


FOUND = {
    "whole numbers": ([0, 1], SingleLabel, ("0", "1"), "2 whole numbers: classification (0, 1)"),
    "names": (["spam", "ham"], SingleLabel, ("ham", "spam"), "2 different texts: classification (ham, spam)"),
    "joined": (["x|y", "x"], MultiLabel, ("x", "y"), "labels joined by |: classification with any number of labels"),
    "fractions": ([0.5, 3], Regression, None, "numbers from 0.5 to 3: regression"),
    "a scale": (range(40), Regression, None, "numbers from 0 to 39: regression"),
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("name", FOUND)
def test_the_kind_is_found_and_said(name, suffix, tmp_path, capsys):
    labels, kind, names, said = FOUND[name]
    labels = list(labels)
    rows = [(text, labels[i % len(labels)]) for i, (text, _) in enumerate(ROWS)]
    path = tmp_path / f"data{suffix}"
    if suffix == ".jsonl":
        write_jsonl(path, rows)
    else:
        write_csv(path, rows, delimiter="," if suffix == ".csv" else "\t")
    own = read(path)
    assert type(own.kind) is kind and getattr(own.kind, "label_names", None) == names
    printed = capsys.readouterr().err
    assert f"120 rows; column 'label' holds {said}" in printed and "reported: test" in printed


def test_lists_are_several_labels_and_may_be_empty(tmp_path):
    rows = [(text, [["x"], ["y", "x"], []][i % 3]) for i, (text, _) in enumerate(ROWS)]
    own = read(write_jsonl(tmp_path / "data.jsonl", rows))
    assert own.kind == MultiLabel(("x", "y"))
    assert {example.label for example in own.splits.train} == {(0,), (0, 1), ()}


def test_splits_hold_every_row_once_keep_duplicates_together_and_ignore_the_order(tmp_path):
    rows = [(f"{text} {i}", label) for i, (text, label) in enumerate(ROWS)]
    rows += [(f"  {text.upper()}", label) for text, label in rows[:60]]
    splits = read(write_csv(tmp_path / "a.csv", rows)).splits.named()
    counts = {name: len(examples) for name, examples in splits.items()}
    assert sum(counts.values()) == 180 and 18 <= counts["test"] <= 19 and 18 <= counts["validation"] <= 19
    texts = {name: {"".join(e.texts[0].lower().split()) for e in examples} for name, examples in splits.items()}
    assert (
        not texts["train"] & texts["test"] | texts["train"] & texts["validation"] | texts["test"] & texts["validation"]
    )
    turned = read(write_csv(tmp_path / "b.csv", rows[::-1])).splits.named()
    for name, examples in splits.items():
        assert sorted(e.texts for e in examples) == sorted(e.texts for e in turned[name])


def test_given_files_are_the_splits_and_shared_texts_are_said(tmp_path, capsys):
    main_file, held_out = write_csv(tmp_path / "a.csv", ROWS[:80]), write_csv(tmp_path / "b.csv", ROWS[78:100])
    other = write_jsonl(tmp_path / "c.jsonl", [(text + " x", label) for text, label in ROWS[100:]])
    splits = read(main_file, "--validation", held_out, "--test", other).splits
    assert [len(part) for part in splits.named().values()] == [80, 22, 20]
    assert "of the validation file's 22 rows have texts that are trained on" in capsys.readouterr().err
    splits = read(main_file, "--test", other).splits
    assert (len(splits.train), len(splits.validation), len(splits.reported["test"])) == (72, 8, 20)


@pytest.mark.parametrize("kind", ["single", "several", "number"])
def test_the_command_trains_and_its_model_predicts_what_it_wrote(kind, toy, tmp_path, capsys):
    labels = {"single": lambda i: "no" if i else "yes", "several": lambda i: "p|q" if i else "q", "number": float}
    rows = [(text, labels[kind](i + 0.5 * (kind == "number"))) for text, i in ROWS]
    path = write_csv(tmp_path / "data.csv", [(text, "second", label) for text, label in rows], ("text", "b", "label"))
    flags = ["--model", toy / "model", "--task", path, "--text", "text", "--pair", "b", "--label", "label"]
    output = tmp_path / "out"
    assert main([*map(str, flags), "--output", str(output), "--compare", *TOY_FLAGS, "--seeds", "1"]) == 0
    rows, results = predictions_of(output), results_of(output)
    assert len(rows) == results["data"]["counts"]["test"] and rows[0]["b"] == "second"
    assert len(results["comparison"]) == 3
    if kind == "single":
        assert results["test"]["mean"] == pytest.approx(sum(r["label"] == r["prediction"] for r in rows) / len(rows))
    if kind == "several":
        assert results["scores"]["test"]["exact_match"]["mean"] == pytest.approx(
            sum(row["label"] == row["prediction"] for row in rows) / len(rows)
        )
        assert all(0 <= float(row["p(p)"]) <= 1 for row in rows)
    assert "'score'" in results["snippet_printed"]  # the card's own example ran
    assert results["snippet_printed"] in (output / "README.md").read_text(encoding="utf-8")


BROKEN = {
    "no column": ("a.csv", "text,stars\na,1\n", ["a.csv, line 1", "'label'", "text, stars"]),
    "column twice": ("a.csv", "text,label,label\na,1,2\n", ["line 1", "more than one column 'label'"]),
    "no label": ("a.csv", "text,label\na,1\nb\n", ["a.csv, line 3, column 'label'"]),
    "no text": ("a.csv", 'text,label\n"a\nb",1\n ,0\n', ["a.csv, line 4, column 'text'", "empty"]),
    "fields too many": ("a.csv", "text,label\na,1\nb,0,c\n", ["a.csv", "line 3"]),
    "no rows": ("a.csv", "text,label\n", ["a.csv", "no rows"]),
    "empty": ("a.csv", "", ["a.csv", "'text'"]),
    "empty jsonl": ("a.jsonl", "", ["a.jsonl", "no rows"]),
    "broken json": ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text" "b"}\n', ["a.jsonl, line 3, column 9"]),
    "no object": ("a.jsonl", '{"text": "a", "label": 1}\n[1]\n', ["a.jsonl, line 2", "JSON object"]),
    "field missing": ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 0}\n', ["a.jsonl, line 2, column 'text'"]),
    "text a number": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": 5, "label": 0}\n', ["line 2, column 'text'"]),
    "one label": ("a.csv", "text,label\n" + "".join(f"a{i},1\n" for i in range(40)), ["one label"]),
    "not labels": (
        "a.csv",
        "text,label\n" + "".join(f"a{i},b{i}\n" for i in range(40)),
        ["40 different texts", "--label"],
    ),
    "too few rows": ("a.csv", "text,label\na,0\nb,1\n", ["train split is empty"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(name, toy, tmp_path, capsys):
    file, content, fragments = BROKEN[name]
    (tmp_path / file).write_text(content, encoding="utf-8")
    assert_refused(toy, tmp_path, tmp_path / file, capsys, [], fragments)


def assert_refused(toy, tmp_path, path, capsys, flags, fragments):
    places = ["--model", toy / "model", "--task", path, "--output", tmp_path / "out"]
    columns = [] if "--text" in flags else ["--text", "text", "--label", "label"]
    assert main([*map(str, places), *columns, *map(str, flags)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and sum(line.startswith("error") for line in error) == 1
    for fragment in fragments:
        assert fragment in error[-1]
    assert not (tmp_path / "out").exists()


def test_flags_and_files_beside(toy, tmp_path, capsys):
    path = write_csv(tmp_path / "a.csv", ROWS)
    unknown = write_csv(tmp_path / "b.csv", [("plain1", 0), ("plain2", 7)])
    (tmp_path / "c.csv").write_bytes(b"text,label\nok,1\ncaf\xe9,0\n")
    for flags, fragments in [
        (["--text", "text"], ["--label is missing"]),
        (["--text", "text", "--label", "text"], ["different columns"]),
        (["--data", tmp_path], ["--data", "leave out"]),
        (["--submission"], ["--submission", "no GLUE task"]),
        (["--test", unknown], ["b.csv, line 3, column 'label'", "'7'", "known are 0, 1"]),
        (["--validation", tmp_path / "c.csv"], ["c.csv, line 3", "not UTF-8"]),
        (["--validation", tmp_path / "c.txt"], ["c.txt", ".csv, .tsv, .jsonl"]),
        (["--validation", tmp_path / "d.csv"], ["d.csv", "no such file"]),
    ]:
        assert_refused(toy, tmp_path, path, capsys, flags, fragments)
    assert_refused(toy, tmp_path, "sst2", capsys, ["--text", "text"], ["--text", "leave it out"])
