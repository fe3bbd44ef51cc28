"""Protects that predict answers, writes and chooses as training's own evaluation does, from every kind of file."""

import csv
import json
from pathlib import Path

import pytest
import torch
from families import model_class, tiny_config, tiny_tokenizer
from test_finetune import predictions_of, toy_tokenizer
from test_multiple_choice import COLUMNS, ENDINGS, chooser, write
from test_predict import BAD_LINES, rows_of, run, texts, write_lines
from test_spans import asked, squad
from test_text_to_text import build, pairs, write_csv

from finetune.cli import main
from finetune.kinds.spans import IMPOSSIBLE
from finetune.squad_data import read_squad

__all__ = ["asked", "chooser"]  # the fixtures
FLAGS = ["--seeds", "1", "--epochs", "1", "--batch_size", "16", "--learning_rate", "5e-3"]


def fine_tune(output: Path, *flags) -> Path:
    assert main([*FLAGS, *map(str, flags), "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def models(asked, chooser, tmp_path_factory) -> dict[str, Path]:
    """One of each kind, shortly trained; questions that may have no answer, in texts longer than a row."""
    folder = tmp_path_factory.mktemp("models")
    build("ours").save_pretrained(folder / "writer")
    toy_tokenizer().save_pretrained(folder / "writer")
    data = write_csv(folder / "pairs.csv", pairs(100))
    question = ["--task", "qa", "--data", asked / "data", "--max_length", 16, "--epochs", 5, "--learning_rate", "1e-2"]
    choice = ["--task", chooser / "data.csv", "--choices", *ENDINGS, *COLUMNS]
    pair = ["--task", data, "--text", "source", "--target", "summary", "--max_length", "12"]
    return {
        "qa": fine_tune(folder / "qa", "--model", asked / "model", *question),
        "choose": fine_tune(folder / "choose", "--model", chooser / "encoder", *choice),
        "write": fine_tune(folder / "write", "--model", folder / "writer", *pair),
    }


def write_questions(path: Path, examples) -> Path:
    rows = [{"q": example.texts[0], "passage": example.texts[1]} for example in examples]
    return write(path, rows)


@pytest.mark.parametrize("suffix", [".json", ".csv", ".jsonl"])
def test_questions_get_the_answers_of_training(suffix, asked, models, tmp_path, capsys):
    given = asked / "data" / "dev-v2.0.json"
    examples, _ = read_squad(given)
    columns = []
    if suffix != ".json":
        given = write_questions(tmp_path / f"in{suffix}", examples)
        columns = ["--question", "q", "--text", "passage"]
    assert json.loads((models["qa"] / "config.json").read_text())[IMPOSSIBLE] is True
    flags = ["--max_length", "16", "--batch_size", "5", *columns]
    assert run(models["qa"], given, tmp_path / "out.jsonl", *flags) == 0
    rows, expected = rows_of(tmp_path / "out.jsonl"), predictions_of(models["qa"])
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in expected]
    assert [(row["question"], row["text"]) for row in rows] == [example.texts for example in examples]
    unit = "question" if suffix == ".json" else "line"
    assert unit in rows[0] and (suffix != ".json" or rows[0]["id"] == "x")
    assert {bool(row["prediction"]) for row in rows} == {True, False}, "the test needs both"
    for row in rows:
        assert 0 < row["probability"] <= 1
        if row["prediction"]:
            assert row["text"][row["start"] : row["end"]] == row["prediction"]
        else:
            assert row["start"] is row["end"] is None
    assert "48 rows; " in capsys.readouterr().out.splitlines()[-1]


def test_the_answers_probability_is_the_plain_models(models, tmp_path):
    """In one window; without the config's field nothing is no answer."""
    model = model_class("Encoder", "ForQuestionAnswering")(tiny_config("Encoder")).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer(model_max_length=32)
    tokenizer.save_pretrained(tmp_path / "model")
    lines = [text for text in texts(30) if 1 < len(text.split()) < 26 and text.startswith("word")]
    source = write_lines(tmp_path / "in.jsonl", [json.dumps({"question": "word5", "context": line}) for line in lines])
    assert run(tmp_path / "model", source, tmp_path / "out.jsonl") == 0
    for row in rows_of(tmp_path / "out.jsonl"):
        encoded = tokenizer("word5", row["text"], return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            answer = model(**encoded)
        first = max(i for i in range(3, len(offsets) - 1) if offsets[i][0] == row["start"])
        last = max(i for i in range(3, len(offsets) - 1) if offsets[i][1] == row["end"])
        expected = answer.start_logits[0].softmax(-1)[first] * answer.end_logits[0].softmax(-1)[last]
        assert row["prediction"] and row["probability"] == pytest.approx(float(expected), rel=1e-4)
        context = answer.start_logits[0, 3:-1, None] + answer.end_logits[0, None, 3:-1]
        assert float(context.triu().masked_fill(context.triu() == 0, -99).max()) == pytest.approx(
            float(answer.start_logits[0, first] + answer.end_logits[0, last]), abs=1e-4
        )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_choices_are_those_of_training_and_may_differ_in_number(suffix, models, tmp_path):
    expected = predictions_of(models["choose"])
    given = write(
        tmp_path / f"in{suffix}", [{key: row[key] for key in ("sent1", "sent2", *ENDINGS)} for row in expected]
    )
    columns = ["--text", "sent1", "--pair", "sent2", "--choices", *ENDINGS]
    assert run(models["choose"], given, tmp_path / "out.jsonl", "--batch_size", "4", *columns) == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [(str(row["prediction"]), row["choice"]) for row in rows] == [
        (row["prediction"], row["choice"]) for row in expected
    ]
    assert [row["probability"] for row in rows] == pytest.approx([float(r["probability"]) for r in expected], abs=2e-6)
    assert rows[0]["choices"] == [expected[0][name] for name in ENDINGS] and rows[0]["pair"] == "plain2"
    if suffix == ".jsonl":
        lists = [
            {"text": r["text"], "pair": r["pair"], "choices": r["choices"][: 2 + i % 2]} for i, r in enumerate(rows)
        ]
        given = write(tmp_path / "lists.jsonl", lists)
        assert run(models["choose"], given, tmp_path / "lists.csv", "--pair", "pair") == 0
        again = list(csv.DictReader((tmp_path / "lists.csv").open(encoding="utf-8", newline="")))
        assert list(again[0]) == ["line", "text", "pair", "choices", "prediction", "choice", "probability", "error"]
        assert [json.loads(row["choices"]) for row in again] == [row["choices"] for row in lists]
        whole = [(i, row) for i, row in enumerate(again) if i % 2]
        assert all(float(row["probability"]) == pytest.approx(rows[i]["probability"]) for i, row in whole)
        assert all(float(row["probability"]) >= 0.5 for row in again[::2])


def test_texts_are_written_as_training_wrote_them(models, tmp_path, capsys):
    expected = predictions_of(models["write"])
    source = write_lines(tmp_path / "in.txt", [row["text"] for row in expected])
    assert run(models["write"], source, tmp_path / "out.jsonl", "--max_length", "12", "--batch_size", "3") == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["text"] for row in rows] == [row["text"] for row in expected]
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in expected]
    too_long = sum(len(row["text"].split()) > 10 for row in rows)
    assert f"10 rows, {too_long} cut to 12 tokens" in capsys.readouterr().out


def test_bad_lines_cost_only_themselves(models, tmp_path, capsys):
    lines = [
        {"question": "plain1", "context": "plain2 good1"},
        {"question": " ", "context": "plain2"},
        {"question": "plain1"},
        {"question": "plain1 " * 40, "context": "plain2 " * 90},
    ]
    source = write_lines(tmp_path / "in.jsonl", list(map(json.dumps, lines)))
    assert run(models["qa"], source, tmp_path / "qa.jsonl") == 0
    rows = rows_of(tmp_path / "qa.jsonl")
    assert [row.get("error") for row in rows] == [None, "empty", "no field 'context'", None]
    assert "4 rows, 2 of them with an error, 1 cut to 32 tokens" in capsys.readouterr().out
    lists = [["good1", "bad1"], ["good1"], "good1", ["good1", 3], ["good1", ""]]
    lines = [json.dumps({"text": "plain1", "choices": choices}) for choices in lists]
    assert run(models["choose"], write_lines(tmp_path / "c.jsonl", lines), tmp_path / "choose.jsonl") == 0
    assert [row.get("error") for row in rows_of(tmp_path / "choose.jsonl")] == [
        None,
        'not a list of two choices or more: ["good1"]',
        'not a list of two choices or more: "good1"',
        "not a text: 3",
        "empty",
    ]
    (tmp_path / "bad.jsonl").write_bytes(BAD_LINES[".jsonl"][0])
    assert run(models["write"], tmp_path / "bad.jsonl", tmp_path / "write.jsonl") == 0
    good = [row["line"] for row in rows_of(tmp_path / "write.jsonl") if "prediction" in row]
    assert good == BAD_LINES[".jsonl"][2]


def test_a_broken_question_in_squads_json_is_named(models, tmp_path, capsys):
    content = squad(2, 0)
    content["data"][0]["paragraphs"][1]["qas"][0]["question"] = 7
    content["data"][1]["paragraphs"][0]["qas"][0] = "what?"
    content["data"][1]["paragraphs"][1]["qas"][0].pop("answers")  # nobody needs those here
    (tmp_path / "in.json").write_text(json.dumps(content))
    assert run(models["qa"], tmp_path / "in.json", tmp_path / "out.jsonl") == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["question"] for row in rows if "error" in row] == [2, 5] and len(rows) == 8
    assert f"{tmp_path / 'in.json'}, question 2: not a text: 7\n" in capsys.readouterr().err


REFUSED = {
    "a line a text": ("qa", "in.txt", "x\n", [], "this model reads question and text; give a .csv or .jsonl file"),
    "no question": ("qa", "in.csv", "text,b\nx,y\n", [], "--question question: in.csv, line 1, has no such column"),
    "question of a writer": ("write", "in.csv", "text,b\nx,y\n", ["--question", "b"], "reads --text; leave it out"),
    "json of a writer": ("write", "in.json", "{}", [], "must end in .txt, .csv, .jsonl"),
    "columns of json": ("qa", "in.json", "{}", ["--text", "x"], "--text: SQuAD's .json has its own fields"),
    "broken json": ("qa", "in.json", "{", [], "in.json, line 1: broken JSON"),
    "empty json": ("qa", "in.json", '{"data": []}', [], "no rows in it"),
    "lists in csv": (
        "choose",
        "in.csv",
        "text,choices\nx,y\n",
        [],
        "--choices choices: a .csv file has a choice in each",
    ),
    "no choices": ("choose", "in.csv", "text,b\nx,y\n", [], "--choices choices: in.csv, line 1, has no such column"),
    "too long": ("write", "in.txt", "x\n", ["--max_length", "999"], "--max_length 999: this model takes at most 32"),
    "too short": ("qa", "in.csv", "question,text\nx,y\n", ["--max_length", "8"], "must be at least 16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line_and_nothing_written(case, models, tmp_path, monkeypatch, capsys):
    name, file, content, flags, message = REFUSED[case]
    (tmp_path / file).write_text(content)
    monkeypatch.chdir(tmp_path)
    assert run(models[name], Path(file), Path("out.jsonl"), *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and message in captured.err
    assert [path.name for path in tmp_path.iterdir()] == [file]
