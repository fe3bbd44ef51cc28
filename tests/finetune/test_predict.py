"""Protects `predict`: the model's answers in order, whatever single lines hold; no half file."""

import csv
import functools
import gzip
import json
import signal
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from families import model_class, tiny_config, tiny_tokenizer
from toys import ENDINGS, launch, predictions_of, save, write_squad, write_table
from toys import run as finetune
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForMaskedLM, pipeline

from finetune import predict as predict_module
from finetune.kinds.spans import IMPOSSIBLE
from finetune.predict import Answerer

LABELS = {
    "single_label_classification": {"id2label": {0: "bad", 1: "good", 2: "so-so"}},
    "multi_label_classification": {"id2label": {0: "bad", 1: "good", 2: "so-so"}},
    "regression": {"num_labels": 1},
}
TAGS = {"id2label": dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))}


def make(folder: Path, family: str, task: str, **overrides) -> Path:
    torch.manual_seed(1)
    model = model_class(family, task)(tiny_config(family, **overrides))
    return save(model, tiny_tokenizer(model_max_length=32), folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """By problem type, and two that label tokens."""
    folder = tmp_path_factory.mktemp("models")
    paths = {
        kind: make(folder / kind, "Encoder", "ForSequenceClassification", problem_type=kind, **labels)
        for kind, labels in LABELS.items()
    }
    decoder = {"problem_type": "single_label_classification", "pad_token_id": 0}
    paths["decoder"] = make(folder / "decoder", "Decoder", "ForSequenceClassification", **decoder)
    paths["entities"] = make(folder / "entities", "Bert", "ForTokenClassification", **TAGS)
    paths["words"] = make(
        folder / "words", "Encoder", "ForTokenClassification", id2label={0: "O", 1: "NOUN", 2: "VERB"}
    )
    return paths


def texts(count: int) -> list[str]:
    """Of very unequal length, some longer than the models take, and one made of words they do not know."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    words = torch.randint(5, 53, (count, 40), generator=generator).tolist()
    rows = [" ".join(f"word{word}" for word in row[:length]) for row, length in zip(words, lengths, strict=True)]
    return [*rows[:-1], "grün 雪 🎈"]


def run(model: Path, source: Path, output: Path, *flags: str) -> int:
    return finetune("--model", model, "--input", source, "--output", output, *flags, command="predict")


def rows_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@functools.cache
def plain_model(folder: Path, task: str):
    family = AutoConfig.from_pretrained(folder).model_type.removeprefix("tiny_transformer_").capitalize()
    return AutoTokenizer.from_pretrained(folder), model_class(family, task).from_pretrained(folder).eval()


@torch.no_grad()
def plain_logits(folder: Path, task: str, *columns: str) -> torch.Tensor:
    """One text or pair alone."""
    tokenizer, model = plain_model(folder, task)
    return model(**tokenizer(*columns, truncation=True, max_length=32, return_tensors="pt")).logits[0]


@pytest.mark.parametrize("kind", [*LABELS, "decoder"])
def test_answers_are_those_of_the_plain_model_row_by_row(kind, models, tmp_path):
    lines = texts(50)
    assert run(models[kind], write_lines(tmp_path / "in.txt", lines), tmp_path / "out.jsonl", "--batch_size", "7") == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["text"] for row in rows] == lines and [row["line"] for row in rows] == list(range(1, 51))
    names = AutoConfig.from_pretrained(models[kind]).id2label
    for row in rows:
        logits = plain_logits(models[kind], "ForSequenceClassification", row["text"])
        if kind == "regression":
            assert row["prediction"] == pytest.approx(float(logits[0]), abs=1e-5)
        elif kind == "multi_label_classification":
            expected = {names[i]: p for i, p in enumerate(logits.sigmoid().tolist())}
            assert row["probabilities"] == pytest.approx(expected, abs=1e-5)
            assert row["prediction"] == [name for name, p in row["probabilities"].items() if p > 0.5]
        else:
            assert row["prediction"] == names[int(logits.argmax())]
            assert row["probability"] == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)
    assert len({str(row["prediction"]) for row in rows}) > 1, "the test needs answers that differ"


def test_pairs_are_read_as_pairs_and_csv_carries_the_same(models, tmp_path):
    pairs = list(zip(texts(12), texts(13)[1:], strict=True))
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["id", "question", "answer"], *([i, *pair] for i, pair in enumerate(pairs))])
    flags = ["--text", "answer", "--pair", "question"]
    model = models["single_label_classification"]
    assert run(model, tmp_path / "in.csv", tmp_path / "out.csv", *flags) == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8", newline="")))
    assert list(rows[0]) == ["line", "text", "pair", "prediction", "probability", "error"]
    assert [(row["pair"], row["text"]) for row in rows] == pairs
    for row in rows:
        logits = plain_logits(model, "ForSequenceClassification", row["text"], row["pair"])
        assert float(row["probability"]) == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)


def test_entities_are_those_of_the_pipeline(models, tmp_path):
    """Where words are separated by spaces, as in training."""
    lines = texts(30)
    assert run(models["entities"], write_lines(tmp_path / "in.txt", lines), tmp_path / "out.jsonl") == 0
    tag = pipeline("token-classification", model=str(models["entities"]), aggregation_strategy="first")
    found = 0
    for row in rows_of(tmp_path / "out.jsonl"):
        if len(row["text"].split()) > 30:
            continue  # the pipeline does not truncate
        expected = [(e["entity_group"], e["start"], e["end"]) for e in tag(row["text"]) if e["entity_group"] != "O"]
        assert [(e["label"], e["start"], e["end"]) for e in row["entities"]] == expected
        assert all(e["text"] == row["text"][e["start"] : e["end"]] for e in row["entities"])
        found += len(expected)
    assert found > 20


def test_a_words_label_is_that_of_its_first_token_and_needs_no_iob(models, tmp_path):
    """As in training, words are separated by spaces; an entity excludes punctuation around it."""
    lines = ["word9 word7-word8 word9", 'word9 "word7." word9', *texts(5)]
    assert run(models["words"], write_lines(tmp_path / "in.txt", lines), tmp_path / "out.jsonl") == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert {e["text"] for row in rows[:2] for e in row["entities"]} <= {"word9", "word7-word8", "word7"}
    for row in rows[2:]:
        logits = plain_logits(models["words"], "ForTokenClassification", row["text"])[1:-1]
        names = [("O", "NOUN", "VERB")[i] for i in logits.argmax(-1).tolist()]
        assert [e["label"] for e in row["entities"]] == [name for name in names if name != "O"]


BAD_LINES = {
    ".txt": (b"word5\r\n\nword6 \xff\nword7", {2: "'' is not a text", 3: "not UTF-8"}, [1, 4]),
    ".jsonl": (
        b'{"text": "word5"}\n{"text": 3}\n{"te\n[1]\n{"other": "x"}\n\n{"text": "\\ud83d"}\n{"text": "word6"}\n'
        + b"[" * 99999
        + b"\n",
        {
            2: "3 is not a text",
            3: "broken JSON (Invalid control character at)",
            4: "not a JSON object",
            5: "no field 'text'",
            7: "half of a surrogate pair",
            9: "broken JSON",
        },
        [1, 8],
    ),
    ".csv": (
        b'\xef\xbb\xbftext,id\n"word5,\nword6",1\nword7\n\n\xff,2\n"' + b"x" * 200_000 + b"\nword8,3\n",
        {4: "1 fields, but the header has 2", 6: "not UTF-8", 7: "is a quote missing?"},
        [2, 8],
    ),
}


@pytest.mark.parametrize("suffix", BAD_LINES)
@pytest.mark.parametrize("zipped", [False, True])
def test_bad_lines_are_named_and_cost_nothing_else(suffix, zipped, models, tmp_path, capsys):
    content, errors, good = BAD_LINES[suffix]
    source = tmp_path / f"in{suffix}{'.gz' * zipped}"
    source.write_bytes(gzip.compress(content) if zipped else content)
    assert run(models["regression"], source, tmp_path / "out.jsonl") == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["line"] for row in rows] == sorted([*errors, *good])
    assert [row["line"] for row in rows if "prediction" in row] == good
    captured = capsys.readouterr()
    for row in rows:
        if row["line"] in errors:
            assert errors[row["line"]] in row["error"]
            assert f"{source}, line {row['line']}: {row['error']}\n" in captured.err
    assert f"{len(rows)} rows, {len(errors)} of them with an error" in captured.out


def test_many_bad_lines_do_not_flood_the_terminal(models, tmp_path, capsys):
    source = write_lines(tmp_path / "in.txt", ["", "word5"] * 50)
    assert run(models["regression"], source, tmp_path / "out.jsonl") == 0
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 20
    assert "100 rows, 50 of them with an error" in captured.out


def test_what_was_cut_is_said(models, tmp_path, capsys):
    source = write_lines(tmp_path / "in.txt", ["word5 " * 30, "word5 " * 31, "word5 " * 99])
    assert run(models["regression"], source, tmp_path / "out.jsonl") == 0
    assert "3 rows, 2 truncated to 32 tokens" in capsys.readouterr().out


def test_memory_does_not_grow_with_the_file(models, tmp_path, monkeypatch):
    """Python's own allocations while 600 and 6,000 rows pass, without the model, which sees one window either way."""
    monkeypatch.setattr(predict_module, "BATCHES_AT_ONCE", 4)
    monkeypatch.setattr(Answerer, "__call__", lambda self, rows: [{"prediction": 0.0} for _ in rows])
    peaks = []
    for count in (600, 6000):
        source = write_lines(tmp_path / f"{count}.txt", ["word5 " * 200] * count)
        tracemalloc.start()
        assert run(models["regression"], source, tmp_path / f"{count}.jsonl") == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(rows_of(tmp_path / f"{count}.jsonl")) == count
    assert peaks[1] < 1.2 * peaks[0] < 1_200_000, peaks


def test_a_killed_process_leaves_no_output_and_a_second_run_succeeds(models, tmp_path):
    source = write_lines(tmp_path / "in.txt", texts(3) * 20_000)  # far more than it can answer before it is killed
    command = ["--model", models["regression"], "--input", source, "--batch_size", "1"]
    process = launch(*command, "--output", tmp_path / "out.jsonl", command="predict")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out.jsonl").exists() and len(list(tmp_path.glob(".out.jsonl-*"))) == 1
    assert run(models["regression"], write_lines(tmp_path / "again.txt", texts(3)), tmp_path / "out.jsonl") == 0
    assert [file.name for file in tmp_path.glob("out*")] == ["out.jsonl"] and len(rows_of(tmp_path / "out.jsonl")) == 3


REFUSALS = {
    "empty": ({"in.txt": ""}, {}, "has no rows"),
    "only a header": ({"in.csv": "text\n"}, {}, "has no rows"),
    "nothing at all in csv": ({"in.csv": ""}, {}, "--text text"),
    "wrong column": ({"in.csv": "a,b\nx,y\n"}, {"text": "c"}, "--text c"),
    "no text column": ({"in.csv": "a,b\nx,y\n"}, {}, "--text text"),
    "wrong pair": ({"in.jsonl": '{"text": "x"}\n'}, {"pair": "b"}, "--pair b"),
    "column of txt": ({"in.txt": "x\n"}, {"text": "x"}, "--text: a .txt file has no columns"),
    "format": ({"in.docx": "x"}, {}, "expected .txt, .csv, .tsv, .jsonl"),
    "no file": ({}, {"input": "in.txt"}, "no such file"),
    "no gzip": ({"in.txt.gz": "x"}, {}, "in.txt.gz: cannot be read"),
    "output format": ({"in.txt": "x\n"}, {"output": "out.txt"}, "--output"),
    "output there": ({"in.txt": "x\n", "out.jsonl": "precious"}, {}, "already exists"),
    "batch": ({"in.txt": "x\n"}, {"batch_size": "0"}, "--batch_size 0: must be at least 1"),
    "unknown flag": ({"in.txt": "x\n"}, {"batchsize": "3"}, "--batchsize (did you mean --batch_size?)"),
    "a folder as output's folder": ({"in.txt": "x\n"}, {"output": "in.txt/out.jsonl"}, "is a file, not a directory"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_one_line_and_nothing_written(case, models, tmp_path, monkeypatch, capsys):
    files, changes, message = REFUSALS[case]
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    flags = {"model": str(models["regression"]), "input": next(iter(files), ""), "output": "out.jsonl"} | changes
    assert finetune(*(word for name in flags for word in (f"--{name}", flags[name])), command="predict") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.out == ""
    assert message in captured.err
    assert {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()} == files


def test_models_that_answer_nothing_are_refused(models, tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", ['{"text": "word5", "pair": "word6"}'])
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    language_model = save(BertForMaskedLM(BertConfig(vocab_size=53, **sizes)), tiny_tokenizer(), tmp_path / "mlm")
    assert run(language_model, source, tmp_path / "out.jsonl") == 2
    assert "BertForMaskedLM, but predict takes ...ForSequenceClassification" in capsys.readouterr().err
    config = json.loads((language_model / "config.json").read_text())
    headless = config | {"architectures": ["BertForSequenceClassification"]}
    (language_model / "config.json").write_text(json.dumps(headless))
    assert run(language_model, source, tmp_path / "out.jsonl") == 2
    assert "weights of BertForSequenceClassification are missing (first: bert.pooler" in capsys.readouterr().err
    assert run(models["entities"], source, tmp_path / "out.jsonl", "--pair", "pair") == 2
    assert "entities is ...ForTokenClassification and reads --text; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_damaged_archive_is_named_with_the_last_good_line(models, tmp_path, capsys):
    whole = gzip.compress("\n".join(texts(2000)).encode())
    (tmp_path / "in.txt.gz").write_bytes(whole[: len(whole) // 2])
    assert run(models["regression"], tmp_path / "in.txt.gz", tmp_path / "out.jsonl") == 2
    error = capsys.readouterr().err
    assert "in.txt.gz: damaged after line " in error and [file.name for file in tmp_path.iterdir()] == ["in.txt.gz"]


FLAGS = ["--seeds", "1", "--batch_size", "16"]
SLOWLY = ["--epochs", "1", "--learning_rate", "5e-3"]


@pytest.fixture(scope="module")
def trained(tasks, tmp_path_factory) -> dict[str, Path]:
    """One result of each kind, trained by the command; questions may have no answer, in texts longer than a row."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_squad(folder / "squad", words=40, impossible=True)
    asked = ["--data", data, "--max_length", "16", "--epochs", "5", "--learning_rate", "1e-2"]
    flags = {"qa": asked, "choose": SLOWLY, "write": [*SLOWLY, "--max_length", "12"], "ner": SLOWLY}
    for name, own in flags.items():
        assert finetune(*tasks[name], *FLAGS, *own, "--output", folder / name) == 0
    return {name: folder / name for name in flags} | {"squad": data}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".json", ".csv", ".jsonl"])
def test_questions_get_the_answers_of_training(suffix, trained, tmp_path):
    given, columns = trained["squad"] / "test.json", []
    paragraphs = [p for d in json.loads(given.read_text())["data"] for p in d["paragraphs"]]
    asked = [{"q": p["qas"][0]["question"], "passage": p["context"]} for p in paragraphs]
    if suffix != ".json":
        given, columns = write_table(tmp_path / f"in{suffix}", asked), ["--question", "q", "--text", "passage"]
    assert json.loads((trained["qa"] / "config.json").read_text())[IMPOSSIBLE] is True
    flags = ["--max_length", "16", "--batch_size", "5", *columns]
    assert run(trained["qa"], given, tmp_path / "out.jsonl", *flags) == 0
    rows, expected = rows_of(tmp_path / "out.jsonl"), predictions_of(trained["qa"])
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in expected]
    assert [(row["question"], row["text"]) for row in rows] == [(a["q"], a["passage"]) for a in asked]
    assert ("question" if suffix == ".json" else "line") in rows[0] and (suffix != ".json" or rows[0]["id"] == "q0")
    for row in rows:
        assert 0 < row["probability"] <= 1
        if row["prediction"]:
            assert row["text"][row["start"] : row["end"]] == row["prediction"]
        else:
            assert row["start"] is row["end"] is None


def test_the_answers_probability_is_the_plain_models(tmp_path):
    """In one window; without the config's field an empty answer is not allowed."""
    folder = make(tmp_path / "model", "Encoder", "ForQuestionAnswering")
    lines = [text for text in texts(30) if 1 < len(text.split()) < 26 and text.startswith("word")]
    source = write_lines(tmp_path / "in.jsonl", [json.dumps({"question": "word5", "context": line}) for line in lines])
    assert run(folder, source, tmp_path / "out.jsonl", "--max_length", "32") == 0
    tokenizer, model = plain_model(folder, "ForQuestionAnswering")
    for row in rows_of(tmp_path / "out.jsonl"):
        encoded = tokenizer("word5", row["text"], return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            answer = model(**encoded)
        first = max(i for i in range(3, len(offsets) - 1) if offsets[i][0] == row["start"])
        last = max(i for i in range(3, len(offsets) - 1) if offsets[i][1] == row["end"])
        expected = answer.start_logits[0].softmax(-1)[first] * answer.end_logits[0].softmax(-1)[last]
        assert row["prediction"] and row["probability"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_choices_are_those_of_training_and_may_differ_in_number(suffix, trained, tmp_path):
    expected = predictions_of(trained["choose"])
    texts_of = [{key: row[key] for key in ("sent1", "sent2", *ENDINGS)} for row in expected]
    columns = ["--text", "sent1", "--pair", "sent2", "--choices", *ENDINGS]
    given = write_table(tmp_path / f"in{suffix}", texts_of)
    assert run(trained["choose"], given, tmp_path / "out.jsonl", "--batch_size", "4", *columns) == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [(str(r["prediction"]), r["choice"]) for r in rows] == [(r["prediction"], r["choice"]) for r in expected]
    assert [row["probability"] for row in rows] == pytest.approx([float(r["probability"]) for r in expected], abs=2e-6)
    if suffix == ".jsonl":
        lists = [
            {"text": r["text"], "pair": r["pair"], "choices": r["choices"][: 2 + i % 2]} for i, r in enumerate(rows)
        ]
        given = write_table(tmp_path / "lists.jsonl", lists)
        assert run(trained["choose"], given, tmp_path / "lists.csv", "--pair", "pair") == 0
        again = list(csv.DictReader((tmp_path / "lists.csv").open(encoding="utf-8", newline="")))
        assert list(again[0]) == ["line", "text", "pair", "choices", "prediction", "choice", "probability", "error"]
        assert [json.loads(row["choices"]) for row in again] == [row["choices"] for row in lists]
        for row, whole in zip(again[1::2], rows[1::2], strict=True):
            assert float(row["probability"]) == pytest.approx(whole["probability"])


@pytest.mark.slow
def test_texts_are_written_and_entities_found_as_in_training(trained, tmp_path, capsys):
    expected = predictions_of(trained["write"])
    source = write_lines(tmp_path / "in.txt", [row["text"] for row in expected])
    assert run(trained["write"], source, tmp_path / "out.jsonl", "--max_length", "12", "--batch_size", "3") == 0
    rows = rows_of(tmp_path / "out.jsonl")
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in expected]
    too_long = sum(len(row["text"].split()) > 10 for row in rows)
    assert f"10 rows, {too_long} truncated to 12 tokens" in capsys.readouterr().out
    words = predictions_of(trained["ner"])
    lines = [" ".join(row["word"] for row in words if row["index"] == str(i)) for i in range(13)]
    assert run(trained["ner"], write_lines(tmp_path / "ner.txt", lines), tmp_path / "ner.jsonl") == 0
    found = sum(len(row["entities"]) for row in rows_of(tmp_path / "ner.jsonl"))
    assert found == sum(row["prediction"].startswith("B-") for row in words) > 0


@pytest.mark.slow
def test_bad_rows_of_every_kind_cost_only_themselves(trained, tmp_path, capsys):
    lines = [
        {"question": "plain1", "context": "plain2 good1"},
        {"question": " ", "context": "plain2"},
        {"question": "plain1"},
        {"question": "plain1 " * 40, "context": "plain2 " * 90},
    ]
    source = write_table(tmp_path / "in.jsonl", lines)
    assert run(trained["qa"], source, tmp_path / "qa.jsonl", "--max_length", "32") == 0
    errors = [row.get("error", "").split(";")[0] for row in rows_of(tmp_path / "qa.jsonl")]
    assert errors == ["", "' ' is not a text", "no field 'context'", ""]
    assert "4 rows, 2 of them with an error, 1 truncated to 32 tokens" in capsys.readouterr().out
    lists = [["good1", "bad1"], ["good1"], "good1", ["good1", 3], ["good1", ""]]
    source = write_table(tmp_path / "c.jsonl", [{"text": "plain1", "choices": choices} for choices in lists])
    assert run(trained["choose"], source, tmp_path / "choose.jsonl") == 0
    short = "is not a list of two choices or more"
    expected = [None, f"['good1'] {short}", f"'good1' {short}", "3 is not a text", "'' is not a text"]
    assert [row.get("error") for row in rows_of(tmp_path / "choose.jsonl")] == expected
    content = json.loads((trained["squad"] / "dev.json").read_text())
    content["data"][0]["paragraphs"][1]["qas"][0]["question"] = 7
    content["data"][1]["paragraphs"][0]["qas"][0] = "what?"
    content["data"][1]["paragraphs"][1]["qas"][0].pop("answers")  # prediction does not need them
    (tmp_path / "in.json").write_text(json.dumps(content))
    assert run(trained["qa"], tmp_path / "in.json", tmp_path / "squad.jsonl") == 0
    assert [row["question"] for row in rows_of(tmp_path / "squad.jsonl") if "error" in row] == [2, 5]
    assert f"{tmp_path / 'in.json'}, question 2: 7 is not a text\n" in capsys.readouterr().err


OF_KINDS = {
    "a line a text": ("qa", "in.txt", "x\n", [], "this model reads question and text; use a .csv or .jsonl file"),
    "no question": ("qa", "in.csv", "text,b\nx,y\n", [], "--question question: in.csv, line 1, has no such column"),
    "question of a writer": ("write", "in.csv", "text,b\nx,y\n", ["--question", "b"], "reads --text; leave it out"),
    "json of a writer": ("write", "in.json", "{}", [], "expected .txt, .csv, .tsv, .jsonl"),
    "columns of json": ("qa", "in.json", "{}", ["--text", "x"], "--text: a .json file has no columns"),
    "broken json": ("qa", "in.json", "{", [], "in.json, line 1: broken JSON"),
    "empty json": ("qa", "in.json", '{"data": []}', [], "has no rows"),
    "lists in csv": ("choose", "in.csv", "text,choices\nx,y\n", [], "a .csv file has one choice per column"),
    "no choices": ("choose", "in.csv", "text,b\nx,y\n", [], "--choices choices: in.csv, line 1, has no such column"),
    "too long": ("write", "in.txt", "x\n", ["--max_length", "999"], "--max_length 999: this model takes at most 32"),
    "too short": ("qa", "in.csv", "question,text\nx,y\n", ["--max_length", "8"], "must be at least 16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OF_KINDS)
def test_input_of_another_kind_is_refused(case, trained, tmp_path, monkeypatch, capsys):
    name, file, content, flags, message = OF_KINDS[case]
    (tmp_path / file).write_text(content)
    monkeypatch.chdir(tmp_path)
    assert run(trained[name], Path(file), Path("out.jsonl"), *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and message in captured.err
    assert [path.name for path in tmp_path.iterdir()] == [file]
