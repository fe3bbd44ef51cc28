"""Protects `python -m finetune predict`: the model's answers in order, whatever single lines hold; no half file."""

import csv
import functools
import gzip
import json
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from families import model_class, tiny_config, tiny_tokenizer
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForMaskedLM, pipeline

from finetune.cli import main
from finetune.predict import run as predict_module
from finetune.predict.labels import Labels
from finetune.predict.rows import TextFile

REPOSITORY = Path(__file__).parents[1]
LABELS = {
    "single_label_classification": {"id2label": {0: "bad", 1: "good", 2: "so-so"}},
    "multi_label_classification": {"id2label": {0: "bad", 1: "good", 2: "so-so"}},
    "regression": {"num_labels": 1},
}
TAGS = {"id2label": dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))}


def save(folder: Path, family: str, task: str, **overrides) -> Path:
    torch.manual_seed(1)
    model_class(family, task)(tiny_config(family, **overrides)).save_pretrained(folder)
    tiny_tokenizer(model_max_length=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """By problem type, and two that label tokens."""
    folder = tmp_path_factory.mktemp("models")
    paths = {
        kind: save(folder / kind, "Encoder", "ForSequenceClassification", problem_type=kind, **labels)
        for kind, labels in LABELS.items()
    }
    decoder = {"problem_type": "single_label_classification", "pad_token_id": 0}
    paths["decoder"] = save(folder / "decoder", "Decoder", "ForSequenceClassification", **decoder)
    paths["entities"] = save(folder / "entities", "Bert", "ForTokenClassification", **TAGS)
    paths["words"] = save(
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
    return main(["predict", "--model", str(model), "--input", str(source), "--output", str(output), *flags])


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
            assert row["prediction"] == [name for name, p in row["probabilities"].items() if p >= 0.5]
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
    assert run(model, tmp_path / "in.csv", tmp_path / "out.csv.gz", *flags) == 0
    with gzip.open(tmp_path / "out.csv.gz", "rt", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["line", "text", "pair", "prediction", "probability", "error"]
    assert [(row["pair"], row["text"]) for row in rows] == pairs
    for row in rows:
        logits = plain_logits(model, "ForSequenceClassification", row["text"], row["pair"])
        assert float(row["probability"]) == pytest.approx(float(logits.softmax(-1).max()), abs=1e-5)


def test_entities_are_those_of_the_pipeline(models, tmp_path):
    lines = texts(30)
    assert run(models["entities"], write_lines(tmp_path / "in.txt", lines), tmp_path / "out.jsonl") == 0
    tag = pipeline("token-classification", model=str(models["entities"]), aggregation_strategy="first")
    found = 0
    for row in rows_of(tmp_path / "out.jsonl"):
        if len(row["text"].split()) > 30:
            continue  # the pipeline does not cut
        expected = [(e["entity_group"], e["start"], e["end"]) for e in tag(row["text"]) if e["entity_group"] != "O"]
        assert [(e["label"], e["start"], e["end"]) for e in row["entities"]] == expected
        assert all(e["text"] == row["text"][e["start"] : e["end"]] for e in row["entities"])
        found += len(expected)
    assert found > 20


def test_labels_without_iob_stand_for_their_words(models, tmp_path):
    assert run(models["words"], write_lines(tmp_path / "in.txt", texts(5)), tmp_path / "out.jsonl") == 0
    for row in rows_of(tmp_path / "out.jsonl"):
        logits = plain_logits(models["words"], "ForTokenClassification", row["text"])[1:-1]
        names = [("O", "NOUN", "VERB")[i] for i in logits.argmax(-1).tolist()]
        assert [e["label"] for e in row["entities"]] == [name for name in names if name != "O"]


BAD_LINES = {
    ".txt": (b"word5\r\n\nword6 \xff\nword7", {2: "empty", 3: "not UTF-8"}, [1, 4]),
    ".jsonl": (
        b'{"text": "word5"}\n{"text": 3}\n{"te\n[1]\n{"other": "x"}\n\n{"text": "\\ud83d"}\n{"text": "word6"}\n'
        + b"[" * 99999
        + b"\n",
        {
            2: "not a text: 3",
            3: "broken JSON (Invalid control character at)",
            4: "not a JSON object",
            5: "no field 'text'",
            6: "empty",
            7: "not UTF-8",
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
    assert captured.err.count("\n") == 21 and "named in the output only" in captured.err
    assert "100 rows, 50 of them with an error" in captured.out


def test_what_was_cut_is_said(models, tmp_path, capsys):
    source = write_lines(tmp_path / "in.txt", ["word5 " * 30, "word5 " * 31, "word5 " * 99])
    assert run(models["regression"], source, tmp_path / "out.jsonl") == 0
    assert "3 rows, 2 cut to 32 tokens" in capsys.readouterr().out


def test_memory_does_not_grow_with_the_file(models, tmp_path, monkeypatch):
    """Python's own allocations while 600 and 6,000 rows pass, without the model, which sees one window either way."""
    monkeypatch.setattr(predict_module, "BATCHES_AT_ONCE", 4)
    source = str(models["regression"])
    opened = predict_module.open_model(source, predict_module.find_answerer(source)[0], Labels.auto_class)
    monkeypatch.setattr(predict_module, "open_model", lambda *_, **__: opened)
    monkeypatch.setattr(Labels, "__call__", lambda self, rows: [{"prediction": 0.0} for _ in rows])
    peaks = []
    for count in (600, 6000):
        source = write_lines(tmp_path / f"{count}.txt", ["word5 " * 200] * count)
        tracemalloc.start()
        assert run(models["regression"], source, tmp_path / f"{count}.jsonl") == 0
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(rows_of(tmp_path / f"{count}.jsonl")) == count
    assert peaks[1] < 1.2 * peaks[0] < 1_200_000, peaks


def test_an_interrupted_run_leaves_nothing_that_looks_whole(models, tmp_path, monkeypatch):
    source = write_lines(tmp_path / "in.txt", texts(100))
    windows = iter([None, KeyboardInterrupt()])

    def interrupted(self, rows):
        if (stop := next(windows)) is not None:
            assert [file.name for file in tmp_path.glob("out*")] == ["out.jsonl.unfinished"]
            raise stop
        return [{"prediction": 0.0} for _ in rows]

    monkeypatch.setattr(predict_module, "BATCHES_AT_ONCE", 1)
    monkeypatch.setattr(Labels, "__call__", interrupted)
    assert run(models["regression"], source, tmp_path / "out.jsonl") == 130
    assert list(tmp_path.iterdir()) == [source]


def test_a_killed_process_leaves_only_an_unfinished_file_and_a_second_run_succeeds(models, tmp_path):
    source = write_lines(tmp_path / "in.txt", texts(3) * 20_000)  # far more than it can answer before it is killed
    command = ["predict", "--model", models["regression"], "--input", source, "--batch_size", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", *map(str, command), "--output", str(tmp_path / "out.jsonl")],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out.jsonl.unfinished").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [file.name for file in tmp_path.glob("out*")] == ["out.jsonl.unfinished"]
    assert run(models["regression"], write_lines(tmp_path / "again.txt", texts(3)), tmp_path / "out.jsonl") == 0
    assert [file.name for file in tmp_path.glob("out*")] == ["out.jsonl"] and len(rows_of(tmp_path / "out.jsonl")) == 3


def masked_language_model(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=53, **sizes)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


REFUSALS = {
    "empty": ({"in.txt": ""}, {}, "no rows in it"),
    "only a header": ({"in.csv": "text\n"}, {}, "no rows in it"),
    "nothing at all in csv": ({"in.csv": ""}, {}, "no rows in it"),
    "wrong column": ({"in.csv": "a,b\nx,y\n"}, {"text": "c"}, "--text c"),
    "no text column": ({"in.csv": "a,b\nx,y\n"}, {}, "--text text"),
    "wrong pair": ({"in.jsonl": '{"text": "x"}\n'}, {"pair": "b"}, "--pair b"),
    "column of txt": ({"in.txt": "x\n"}, {"text": "x"}, "--text: a .txt file has no columns"),
    "format": ({"in.parquet": "x"}, {}, "must end in .txt, .csv, .jsonl"),
    "no file": ({}, {"input": "in.txt"}, "no such file"),
    "no gzip": ({"in.txt.gz": "x"}, {}, "can't be read on"),
    "output format": ({"in.txt": "x\n"}, {"output": "out.txt"}, "--output"),
    "output there": ({"in.txt": "x\n", "out.jsonl": "precious"}, {}, "already there"),
    "batch": ({"in.txt": "x\n"}, {"batch_size": "0"}, "--batch_size: 0: must be a whole number, at least 1"),
    "unknown flag": ({"in.txt": "x\n"}, {"batchsize": "3"}, "--batchsize"),
    "a folder as output's folder": ({"in.txt": "x\n"}, {"output": "in.txt/out.jsonl"}, "is a file, not a directory"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_in_one_line_and_nothing_written(case, models, tmp_path, monkeypatch, capsys):
    files, changes, message = REFUSALS[case]
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    flags = {"model": str(models["regression"]), "input": next(iter(files), ""), "output": "out.jsonl"} | changes
    assert main(["predict", *(word for name, value in flags.items() for word in (f"--{name}", value))]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.out == ""
    assert message in captured.err
    assert {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()} == files


def test_models_that_answer_nothing_are_refused(models, tmp_path, capsys):
    source = write_lines(tmp_path / "in.jsonl", ['{"text": "word5", "pair": "word6"}'])
    language_model = masked_language_model(tmp_path / "mlm")
    assert run(language_model, source, tmp_path / "out.jsonl") == 2
    assert "BertForMaskedLM, but predict takes ...ForSequenceClassification" in capsys.readouterr().err
    config = json.loads((language_model / "config.json").read_text())
    headless = config | {"architectures": ["BertForSequenceClassification"]}
    (language_model / "config.json").write_text(json.dumps(headless))
    assert run(language_model, source, tmp_path / "out.jsonl") == 2
    assert "lack bert.pooler.dense.bias, which BertForSequenceClassification needs" in capsys.readouterr().err
    assert run(models["entities"], source, tmp_path / "out.jsonl", "--pair", "pair") == 2
    assert "entities is ...ForTokenClassification and reads --text; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_damaged_archive_is_named_with_the_last_good_line(tmp_path):
    whole = gzip.compress("\n".join(texts(2000)).encode())
    (tmp_path / "in.txt.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match=r"in.txt.gz, after line \d+: can't be read on"):
        list(TextFile(tmp_path / "in.txt.gz", Labels.reads, {}))
