"""Protects multiple choice: each choice is read as its own pair, labels mean what the file says, and it is learned."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_finetune import BAD, GOOD, PLAIN, bert_config, predictions_of, results_of, toy_tokenizer
from transformers import BertForMaskedLM, BertForMultipleChoice

import hf_tiny_transformer as ours
from finetune.checkpoint import build_model, open_checkpoint
from finetune.cli import main, parse_settings
from finetune.examples import Example
from finetune.kinds.multiple_choice import MultipleChoice
from finetune.own_data import read_own_data
from finetune.train import MaskedTexts, model_outputs
from hf_tiny_transformer.cards import run_snippet, snippet

SHAPE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FLAGS = ["--learning_rate", "5e-3", "--epochs", "3", "--batch_size", "16", "--seeds", "1"]
COLUMNS = ["--text", "sent1", "--pair", "sent2", "--label", "label"]
ENDINGS = ["ending0", "ending1", "ending2"]


def questions(count: int, seed: int = 0) -> list[dict]:
    """In SWAG's columns: the right ending holds a good word, the others a bad one; lengths differ."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = int(draw.integers(3))
        endings = {}
        for c, name in enumerate(ENDINGS):
            words = [*draw.choice(PLAIN, draw.integers(1, 7)), draw.choice(GOOD if c == label else BAD)]
            endings[name] = " ".join(draw.permutation(words))
        rows.append({"sent1": f"plain{i % 24} plain{i // 24}", "sent2": "plain2", **endings, "label": label})
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    """.csv or .jsonl."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        if path.suffix == ".jsonl":
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            table = csv.DictWriter(stream, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    return path


def as_lists(rows: list[dict]) -> list[dict]:
    return [
        {"sent1": r["sent1"], "sent2": r["sent2"], "endings": [r[name] for name in ENDINGS], "label": r["label"]}
        for r in rows
    ]


@pytest.fixture(scope="session")
def chooser(tmp_path_factory) -> Path:
    """Models that were pretrained for nothing, `stock/`, `encoder/` and `bert/`, and `data.csv`."""
    folder = tmp_path_factory.mktemp("chooser")
    torch.manual_seed(0)
    sizes = {**SHAPE, "intermediate_size": 64, "max_position_embeddings": 32}
    models = {
        "stock": BertForMaskedLM(bert_config()),
        "encoder": ours.TinyTransformerEncoderForMaskedLM(ours.TinyTransformerEncoderConfig(**sizes)),
        "bert": ours.TinyTransformerBertForMaskedLM(ours.TinyTransformerBertConfig(**sizes)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        toy_tokenizer().save_pretrained(folder / name)
    write(folder / "data.csv", questions(300))
    return folder


def command(model: Path, data: Path, output: Path, *flags, choices=tuple(ENDINGS), columns=tuple(COLUMNS)) -> list[str]:
    places = ["--model", model, "--task", data, "--output", output, "--choices", *choices]
    return [*map(str, places), *columns, *FLAGS, *map(str, flags)]


@pytest.mark.parametrize("shared", [1, 2])
def test_each_choice_is_a_pair_of_its_own_and_scores_are_the_models_row_by_row(shared, chooser):
    """Choices of very unequal length, one too long: padding and sorting by length change nothing."""
    kind = MultipleChoice(shared)
    checkpoint = open_checkpoint(str(chooser / "stock"), kind, dropout=None, max_length=20)
    settings = parse_settings(["--model", "x", "--task", "x", "--output", "x", "--batch_size", "2"])
    words = [*PLAIN, *GOOD]
    examples = []
    for i in range(7):
        beginning = ["plain3 plain4"][: shared - 1]
        choices = [" ".join(words[c + i : c + i + 1 + (5 * c + 11 * i) % 17]) for c in range(3)]
        examples.append(Example(("plain1 " * (i + 1), *beginning, *choices), i % 3))
    split = kind.encode_split(examples, checkpoint)
    model = build_model(checkpoint, 1, from_scratch=False).eval()
    assert type(model) is BertForMultipleChoice
    outputs = model_outputs(kind, checkpoint, settings, model, split)
    assert outputs.shape == (7, 3) and kind.scores(outputs, split) == {
        "accuracy": np.mean([int(row.argmax()) == i % 3 for i, row in enumerate(outputs)])
    }
    for example, row, output in zip(examples, split.rows, outputs, strict=True):
        assert row["labels"] == example.label
        for c, choice in enumerate(example.texts[shared:]):
            second = choice if shared == 1 else f"plain3 plain4 {choice}"
            expected = checkpoint.tokenizer(example.texts[0], second, truncation=True, max_length=20)
            assert row["input_ids"][c] == expected["input_ids"] and len(row["input_ids"][c]) <= 20
            with torch.no_grad():
                alone = model(**{name: torch.tensor([[values]]) for name, values in expected.items()}).logits
            assert output[c] == pytest.approx(float(alone), abs=1e-5)


def test_masking_hides_tokens_of_every_choice_and_no_special_one(chooser):
    kind = MultipleChoice()
    checkpoint = open_checkpoint(str(chooser / "stock"), kind, dropout=None, max_length=None)
    rows = kind.encode([Example(("plain1 plain2", "good1", "bad1 bad2 bad3"), 1)], checkpoint)
    hidden = MaskedTexts(rows, checkpoint.tokenizer, 0.999)[0]
    special = checkpoint.tokenizer.all_special_ids
    for before, after in zip(rows[0]["input_ids"], hidden["input_ids"], strict=True):
        assert after == [i if i in special else checkpoint.tokenizer.mask_token_id for i in before]
    assert hidden["labels"] == 1


@pytest.mark.parametrize("model", ["stock", "encoder", "bert"])
def test_the_command_learns_to_choose(model, chooser, tmp_path, capsys):
    flags = ["--compare", "--label_smoothing", "0.1"] if model == "stock" else ["--token_masking", "0.05"]
    assert main(command(chooser / model, chooser / "data.csv", tmp_path / "out", *flags)) == 0
    assert "column 'label' holds numbers from 0: multiple choice among 3" in capsys.readouterr().err
    results = results_of(tmp_path / "out")
    assert results["metric"] == "accuracy" and results["test"]["mean"] > 0.8, "chance is a third"
    rows = predictions_of(tmp_path / "out")
    assert len(rows) == results["data"]["counts"]["test"] == 30
    truth = {(row["sent1"], row["ending0"]): row for row in questions(300)}
    for row in rows:
        assert int(row["label"]) == truth[row["sent1"], row["ending0"]]["label"]
        assert row["choice"] == row[f"ending{row['prediction']}"] and 1 / 3 <= float(row["probability"]) <= 1
    right = [row["label"] == row["prediction"] for row in rows]
    assert np.mean(right) == pytest.approx(results["test"]["mean"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert run_snippet(snippet(card), tmp_path / "out") == results_of(tmp_path / "out")["snippet_printed"]
    assert "pipeline_tag: multiple-choice" in card
    if model == "stock":
        names = [row["name"].split(" (")[0] for row in results["comparison"]]
        assert names == ["most frequent place", "most alike by TF-IDF", "same architecture, from scratch"]
        assert all(row["test"]["mean"] < 0.7 for row in results["comparison"][:2])


def test_the_tfidf_baseline_takes_the_choice_that_shares_words(tmp_path):
    """Of words that it has seen in training; the other choice is longer, and right half as often."""
    rows = []
    for i in range(120):
        like, other = f"x{i % 7} z1", f"z{i % 5} v{i % 4} v2"
        a, b = (other, like) if i % 3 else (like, other)
        rows.append({"text": f"w{i} x{i % 7}", "a": a, "b": b, "label": "B" if i % 3 else "A"})
    own = read(write(tmp_path / "a.csv", rows), "--text", "text", "--choices", "a", "b")
    frequent, alike = own.kind.baselines(own.splits)
    assert alike.reported["test"]["accuracy"].mean == 1.0
    labels = [example.label for example in own.splits.reported["test"]]
    assert frequent.reported["test"]["accuracy"].mean == np.mean(np.array(labels) == 1)


def read(path: Path, *flags):
    required = ["--model", "unused", "--task", path, "--output", "unused", "--label", "label"]
    return read_own_data(parse_settings([*map(str, required), *map(str, flags)]))


READINGS = {
    "numbers from 0": lambda row: row["label"],
    "numbers from 1": lambda row: row["label"] + 1,
    "letters from A": lambda row: "Abc"[row["label"]],
    "the right choice's text": lambda row: f" {row[ENDINGS[row['label']]]} ",
}


@pytest.mark.parametrize("lists", [False, True])
@pytest.mark.parametrize("name", READINGS)
def test_labels_are_found_out_and_said(name, lists, tmp_path, capsys):
    rows = [row | {"label": READINGS[name](row)} for row in questions(60)]
    path = write(tmp_path / "a.jsonl", as_lists(rows)) if lists else write(tmp_path / "a.csv", rows)
    choices = ["endings"] if lists else ENDINGS
    own = read(path, "--text", "sent1", "--pair", "sent2", "--choices", *choices)
    assert f"holds {name}: multiple choice among 3" in capsys.readouterr().err
    assert own.kind == MultipleChoice(shared=2)
    columns = [f"endings[{i}]" for i in range(3)] if lists else ENDINGS
    assert own.text_columns == ("sent1", "sent2", *columns)
    truth = {(r["sent1"], r["sent2"], *(r[e] for e in ENDINGS)): r["label"] for r in questions(60)}
    for examples in own.splits.named().values():
        assert all(truth[example.texts] == example.label for example in examples)


def test_questions_about_one_text_stay_together(tmp_path):
    rows = [row | {"sent1": f"text {i // 4}"} for i, row in enumerate(questions(80))]
    splits = read(write(tmp_path / "a.csv", rows), "--text", "sent1", "--choices", *ENDINGS).splits.named()
    texts = [{example.texts[0] for example in examples} for examples in splits.values()]
    assert sum(map(len, texts)) == 20 and [len(examples) for examples in splits.values()] == [64, 8, 8]


def changed(change, at: int = 5) -> list[dict]:
    rows = as_lists(questions(40))
    change(rows[at])
    return rows


BROKEN = {
    "a choice less": (changed(lambda r: r["endings"].pop()), "line 6, column 'endings': 2 choices, but 3 in the first"),
    "one choice": (changed(lambda r: r.update(endings=["x"])), "line 6, column 'endings': 1 choices; give it two"),
    "an empty choice": (changed(lambda r: r.update(endings=["x", " ", "y"])), "line 6, column 'endings': empty"),
    "no list": ([row | {"endings": "x"} for row in as_lists(questions(9))], "line 1, column 'endings': 'x' is no list"),
    "no text": (changed(lambda r: r.update(sent1="")), "line 6, column 'sent1': empty"),
    "no such choice": (changed(lambda r: r.update(label=3)), "line 6, column 'label': label 3; wanted is 0 to 2"),
    "no label": (changed(lambda r: r.update(label=None)), "line 6, column 'label': label None; wanted is 0 to 2"),
    "two readings": (
        [row | {"label": 1 + i % 2} for i, row in enumerate(as_lists(questions(40)))],
        "column 'label': may be numbers from 0 or numbers from 1, and they differ",
    ),
    "two of a kind": (
        [row | {"endings": ["x", "x", "y"], "label": "yx"[i > 4]} for i, row in enumerate(as_lists(questions(9)))],
        "line 6, column 'label': label 'x'; wanted is the text of exactly one of the row's choices",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rows_end_in_one_line(name, chooser, tmp_path, capsys):
    rows, fragment = BROKEN[name]
    data = write(tmp_path / "a.jsonl", rows)
    assert main(command(chooser / "stock", data, tmp_path / "out", choices=["endings"])) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and fragment in error and list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize(
    ("choices", "columns", "fragment"),
    [
        (["ending0", "nothing"], COLUMNS, "no column 'nothing'"),
        (["ending0"], COLUMNS, "column 'ending0'"),
        (["ending0", "sent2"], COLUMNS, "must name different columns"),
        (ENDINGS, ["--text", "sent1"], "--label is missing"),
        (ENDINGS, ["--text", "sent1", "--target", "label"], "--choices and --target"),
        ([""], COLUMNS, "--choices is empty"),
        ([], COLUMNS, "--choices needs a value: one column or several"),
    ],
)
def test_flags_that_do_not_fit_are_refused(choices, columns, fragment, chooser, tmp_path, capsys):
    assert (
        main(command(chooser / "stock", chooser / "data.csv", tmp_path / "out", choices=choices, columns=columns)) == 2
    )
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and fragment in error and not (tmp_path / "out").exists()


def test_other_tasks_take_no_choices(chooser, tmp_path, capsys):
    places = ["--model", chooser / "stock", "--task", "sst2", "--output", tmp_path / "out", "--choices", "a"]
    assert main([*map(str, places)]) == 2
    assert "--choices: the task sst2 brings its own columns" in capsys.readouterr().err
