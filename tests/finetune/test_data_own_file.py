"""Protects own files: the kind of task is found and printed, no text is in two splits, bad rows are refused."""

import gzip

import pytest
from data_fixtures import ROWS, refuses, settings, write_table

from finetune.data.own_file import is_own_file, read_own_file
from finetune.kinds.multiple_choice import MultipleChoice
from finetune.kinds.sequence import MultiLabel, Regression, SingleLabel
from finetune.kinds.text_to_text import TextToText

OWN_SHA = "78637a2bc85b4487a4ba1d6079b8ec4725b3c2dff203800e50ca4250e42d7e0b"
FOUND = {
    "whole numbers": ([0, 1], SingleLabel, ("0", "1"), "2 whole numbers: classification (0, 1)"),
    "large numbers": ([1234567, 1234568], SingleLabel, ("1234567", "1234568"), "2 whole numbers"),
    "names": (["spam", "ham"], SingleLabel, ("ham", "spam"), "2 different texts: classification (ham, spam)"),
    "joined": (["x|y", "x"], MultiLabel, ("x", "y"), "labels joined by |: classification with any number of labels"),
    "fractions": ([0.5, 3], Regression, None, "numbers from 0.5 to 3: regression"),
    "a scale": ([*range(40)], Regression, None, "numbers from 0 to 39: regression"),
}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("name", FOUND)
def test_the_kind_is_found_and_printed(name, suffix, tmp_path, capsys):
    labels, kind, names, finding = FOUND[name]
    rows = [(text, labels[i % len(labels)]) for i, (text, _) in enumerate(ROWS)]
    found, columns, _ = read_own_file(settings(write_table(tmp_path / f"data{suffix}", rows)))
    assert type(found) is kind and getattr(found, "label_names", None) == names
    assert columns == ("text",)
    printed = capsys.readouterr().err
    assert f"120 rows; column 'label' holds {finding}" in printed and "reported: test" in printed


def test_lists_are_several_labels_and_may_be_empty(tmp_path):
    rows = [(text, [["x"], ["y", "x"], []][i % 3]) for i, (text, _) in enumerate(ROWS)]
    found, _, splits = read_own_file(settings(write_table(tmp_path / "data.jsonl", rows)))
    assert found == MultiLabel(("x", "y"))
    assert {example.label for example in splits.train} == {(0,), (0, 1), ()}


def test_targets_are_texts_to_write(tmp_path):
    rows = [(text, f" nan {i} ") for i, (text, _) in enumerate(ROWS)]
    path = write_table(tmp_path / "a.csv", rows)
    found, _, splits = read_own_file(settings(path, target="label", metric="bleu"))
    assert found == TextToText("bleu") and splits.train[0].label.startswith("nan ")


def test_splits_hold_every_row_once_keep_duplicates_together_and_ignore_the_order(tmp_path):
    rows = [(f"{text} {i}", label) for i, (text, label) in enumerate(ROWS)]
    rows += [(f"  {text.upper()}", label) for text, label in rows[:60]]
    splits = read_own_file(settings(write_table(tmp_path / "a.csv", rows)))[2].named()
    counts = {name: len(examples) for name, examples in splits.items()}
    assert sum(counts.values()) == 180 and 18 <= counts["test"] <= 19 and 18 <= counts["validation"] <= 19
    texts = [{"".join(e.texts[0].lower().split()) for e in examples} for examples in splits.values()]
    assert len(set.union(*texts)) == sum(map(len, texts)) == 120
    turned = read_own_file(settings(write_table(tmp_path / "b.csv", rows[::-1])))[2].named()
    assert all(sorted(e.texts for e in splits[name]) == sorted(e.texts for e in turned[name]) for name in splits)


def test_the_split_and_its_fingerprint_never_change(tmp_path):
    """Results of earlier versions are comparable only if these figures stay."""
    described = read_own_file(settings(write_table(tmp_path / "a.csv", ROWS)))[2].describe()
    assert described == {"counts": {"train": 96, "validation": 12, "test": 12}, "sha256": OWN_SHA}


@pytest.mark.parametrize(
    ("labels", "label_type", "kind", "names"),
    [
        ([*range(25)], "classification", SingleLabel, tuple(map(str, range(25)))),
        (["1.5", "2", "2.5"], "classification", SingleLabel, ("1.5", "2", "2.5")),
        (["a|b", "c"], "classification", SingleLabel, ("a|b", "c")),
        ([1, 2, 3], "regression", Regression, None),
        (["x", "y"], "multi-label", MultiLabel, ("x", "y")),
    ],
)
def test_the_user_may_say_what_the_labels_are(labels, label_type, kind, names, tmp_path):
    rows = [(text, labels[i % len(labels)]) for i, (text, _) in enumerate(ROWS)]
    found = read_own_file(settings(write_table(tmp_path / "a.csv", rows), label_type=label_type))[0]
    assert type(found) is kind and getattr(found, "label_names", None) == names


def test_what_the_user_says_must_fit(tmp_path):
    path = write_table(tmp_path / "a.csv", [(text, "ab"[label]) for text, label in ROWS])
    message = refuses(read_own_file, settings(path, label_type="regression"))
    assert "a.csv" in message and "line 2" in message and "'a' is not a number" in message
    assert "--metric rouge: does not score a --label" in refuses(read_own_file, settings(path, metric="rouge"))
    numbers = write_table(tmp_path / "b.csv", [(text, label + 0.5) for text, label in ROWS])
    assert "--metric macro_f1: column 'label' holds" in refuses(read_own_file, settings(numbers, metric="macro_f1"))


def test_every_split_has_the_same_share_of_a_rare_class(tmp_path):
    rows = [(f"{text} {i}", "rare" if i % 40 == 0 else "common") for i, (text, _) in enumerate(ROWS * 2)]
    splits = read_own_file(settings(write_table(tmp_path / "a.csv", rows)))[2].named()
    rare = {name: sum(example.label == 1 for example in examples) for name, examples in splits.items()}
    assert rare == {"train": 4, "validation": 1, "test": 1}
    assert {name: len(examples) for name, examples in splits.items()} == {"train": 192, "validation": 24, "test": 24}


def test_given_files_are_the_splits_and_shared_texts_are_warned_about(tmp_path, capsys):
    path, held_out = write_table(tmp_path / "a.csv", ROWS[:80]), write_table(tmp_path / "b.csv", ROWS[78:100])
    other = write_table(tmp_path / "c.jsonl", [(text + " x", label) for text, label in ROWS[100:]])
    splits = read_own_file(settings(path, validation=str(held_out), test=str(other)))[2]
    assert [len(part) for part in splits.named().values()] == [80, 22, 20]
    assert "of 22 rows of the validation file also occur in the training data" in capsys.readouterr().err
    splits = read_own_file(settings(path, test=str(other)))[2]
    assert [len(part) for part in splits.named().values()] == [72, 8, 20]


def test_a_path_that_exists_is_a_path_and_files_may_be_compressed(tmp_path):
    folder = tmp_path / "path [v2] für"
    folder.mkdir()
    path = write_table(folder / "reviews [final].csv", ROWS)
    expected = read_own_file(settings(path))[2]
    packed = folder / "reviews #1?.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert is_own_file(str(path)) and is_own_file(str(packed)) and not is_own_file("sst2")
    assert read_own_file(settings(packed))[2] == expected


def test_columns_may_be_named_like_flags(tmp_path):
    path = write_table(tmp_path / "a.csv", [(text, label) for text, label in ROWS], ("choices", "label"))
    _, columns, splits = read_own_file(settings(path, text="choices"))
    assert columns == ("choices",) and all(len(example.texts) == 1 for example in splits.train)
    assert "must name different columns" in refuses(read_own_file, settings(path, text="choices", pair="choices"))


SCORES = [(text, 1 + i / 40) for i, (text, _) in enumerate(ROWS)]
BAD_ROWS = {
    "a score nan": (SCORES, "nan", "line 31, column 'label': 'nan' is not a label or number"),
    "a score inf": (SCORES, "-Inf", "line 31, column 'label': '-Inf' is not a label or number"),
    "a label nan": (ROWS, "NaN", "line 31, column 'label': 'NaN' is not a label or number"),
    "no label": (ROWS, " ", "line 31, column 'label': ' ' is not a label"),
    "one of several": ([(text, "x|y") for text, _ in ROWS], "nan", "line 31, column 'label': 'nan' is not"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_an_answer_that_is_none_is_refused_and_not_a_class(case, tmp_path):
    rows, label, fragment = BAD_ROWS[case]
    rows = [*rows[:29], (rows[29][0], label), *rows[30:]]
    assert fragment in refuses(read_own_file, settings(write_table(tmp_path / "a.csv", rows)))


BROKEN = {
    "no column": ("a.csv", "text,stars\na,1\n", "a.csv, line 1: no column 'label'; it has text, stars"),
    "no label": ("a.csv", "text,label\na,1\nb\n", "a.csv, line 3: 1 fields"),
    "no text": ("a.csv", 'text,label\n"a\nb",1\n ,0\n', "a.csv, line 4, column 'text': ' ' is not a text"),
    "no rows": ("a.csv", "text,label\n", "a.csv: no rows"),
    "broken json": ("a.jsonl", '{"text": "a", "label": 1}\n\n{"text" "b"}\n', "a.jsonl, line 3: broken JSON"),
    "field missing": ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 0}\n', "a.jsonl, line 2: no field 'text'"),
    "text a number": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": 5, "label": 0}\n', "line 2, column 'text': 5"),
    "null text": (
        "a.jsonl",
        '{"text": "a", "label": 1}\n{"text": null, "label": 0}\n',
        "line 2, column 'text': None is not a text",
    ),
    "null label": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": null}\n', "line 2, column 'label'"),
    "a number that is none": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": NaN}\n', "line 2"),
    "null in a list": ("a.jsonl", '{"text": "a", "label": ["x"]}\n{"text": "b", "label": [null]}\n', "line 2"),
    "half a surrogate": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b\\ud800", "label": 0}\n', "line 2"),
    "not UTF-8": ("a.csv", b"text,label\nok,1\ncaf\xe9,0\n", "a.csv, line 3: column 'text': not UTF-8"),
    "not labels": ("a.csv", "text,label\n" + "".join(f"a{i},b{i}\n" for i in range(40)), "40 different texts"),
    "a format without columns": ("a.txt", "a\n", "a.txt: unsupported format; expected .csv, .tsv, .jsonl, .parquet"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_files_are_refused_with_their_line(case, tmp_path):
    name, content, fragment = BROKEN[case]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert fragment in refuses(read_own_file, settings(tmp_path / name))


def test_too_few_rows_or_labels_are_refused(tmp_path):
    for rows, fragment in [(ROWS[:2], "the validation split is empty"), ([(text, 1) for text, _ in ROWS], "one label")]:
        splits = read_own_file(settings(write_table(tmp_path / "a.csv", rows)))[2]
        assert fragment in refuses(splits.require_trainable, "task a.csv")


FLAGS = {
    "--label is required": {"label": None},
    "must name different columns": {"label": "text"},
    "--data: does not apply to a table with --label": {"data": "x"},
    "--label: does not apply to a table with --target": {"label": "label", "target": "target"},
    "--choices: does not apply": {"choices": ["a"], "target": "target"},
    "--metric bleu: does not score a --label": {"metric": "bleu"},
    "--pair: does not apply": {"target": "target", "pair": "b"},
    "b.csv, line 3, column 'label': label '7'; expected 0, 1": {"test": "b.csv"},
    "--validation c.csv: no such file": {"validation": "c.csv"},
}


@pytest.mark.parametrize("fragment", FLAGS)
def test_flags_and_further_files_that_do_not_fit(fragment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "b.csv", [("plain1", 0), ("plain2", 7)])
    assert fragment in refuses(read_own_file, settings(write_table(tmp_path / "a.csv", ROWS), **FLAGS[fragment]))


ENDINGS = ("ending0", "ending1", "ending2")
QUESTIONS = [(f"text {i // 4}", f"beginning {i}", *(f"end {i} {c}" for c in range(3)), i % 3) for i in range(80)]
READINGS = {
    "numbers from 0": lambda row: row[-1],
    "numbers from 1": lambda row: row[-1] + 1,
    "letters from A": lambda row: "Abc"[row[-1]],
    "the right choice's text": lambda row: f" {row[2 + row[-1]]} ",
}


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("name", READINGS)
def test_the_reading_of_right_choices_is_found_and_printed(name, lists, tmp_path, capsys):
    rows = [(*row[:5], READINGS[name](row)) for row in QUESTIONS]
    header, choices = ("text", "pair", *ENDINGS, "label"), list(ENDINGS)
    if lists:
        rows, header, choices = [(*r[:2], r[2:5], r[5]) for r in rows], ("text", "pair", "end", "label"), ["end"]
    path = write_table(tmp_path / ("a.jsonl" if lists else "a.csv"), rows, header)
    found, columns, splits = read_own_file(settings(path, pair="pair", choices=choices))
    assert f"holds {name}: multiple choice among 3" in capsys.readouterr().err
    assert found == MultipleChoice(shared=2)
    assert columns == ("text", "pair", *([f"end[{i}]" for i in range(3)] if lists else ENDINGS))
    truth = {row[:5]: row[5] for row in QUESTIONS}
    splits = splits.named()
    assert all(truth[example.texts] == example.label for examples in splits.values() for example in examples)
    texts = [{example.texts[0] for example in examples} for examples in splits.values()]
    assert sum(map(len, texts)) == 20, "questions about one text stay together"


LISTS = [(*row[:2], list(row[2:5]), row[5]) for row in QUESTIONS]
BAD_CHOICES = {
    "line 6, column 'end': 2 choices, but 3 in the first row": ("t", "p", ["x", "y"], 1),
    "line 6, column 'end': ['x'] is not a list of two choices": ("t", "p", ["x"], 0),
    "line 6, column 'end': ' ' is not a text": ("t", "p", ["x", " ", "y"], 0),
    "line 6, column 'end': 'x' is not a list": ("t", "p", "x", 0),
    "line 6, column 'text': '' is not a text": ("", "p", ["x", "y", "z"], 0),
    "line 6, column 'label': label 3; expected numbers from 0, of 3 choices": ("t", "p", ["x", "y", "z"], 3),
    "line 6, column 'label': label None; expected numbers from 0": ("t", "p", ["x", "y", "z"], None),
}


@pytest.mark.parametrize("fragment", BAD_CHOICES)
def test_bad_choices_are_refused_with_their_line(fragment, tmp_path):
    rows = [*LISTS[:5], BAD_CHOICES[fragment], *LISTS[5:]]
    path = write_table(tmp_path / "a.jsonl", rows, ("text", "pair", "end", "label"))
    assert fragment in refuses(read_own_file, settings(path, choices=["end"]))


def test_two_readings_that_differ_are_refused(tmp_path):
    rows = [(*row[:3], 1 + i % 2) for i, row in enumerate(LISTS)]
    path = write_table(tmp_path / "a.jsonl", rows, ("text", "pair", "end", "label"))
    message = refuses(read_own_file, settings(path, choices=["end"]))
    assert "column 'label': may be numbers from 0 or numbers from 1, which differ" in message
