"""Protects the promise that wrong input to `python -m finetune` ends in one clear line, status 2 and no file."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from finetune.cli import main

REPOSITORY = Path(__file__).parents[1]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["good", "bad", "film", "plot"]


@pytest.fixture(scope="session")
def healthy(tmp_path_factory) -> Path:
    """A folder with `model/` and `SST-2/` in which nothing is wrong; each test breaks one thing in a copy."""
    folder = tmp_path_factory.mktemp("healthy")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=16, max_position_embeddings=32, **sizes)).save_pretrained(folder / "model")
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder / "model")
    (folder / "SST-2").mkdir()
    rows = [f"{('bad', 'good')[number % 2]} film {number}\t{number % 2}" for number in range(40)]
    for name in ("train", "dev"):
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def work(healthy, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(healthy, tmp_path, dirs_exist_ok=True)
    return tmp_path


def arguments(work: Path, **changes: str | None) -> list[str]:
    """A full, healthy command line; `changes` replaces, adds or (None) removes flags."""
    flags = {"model": work / "model", "task": "sst2", "data": work, "output": work / "out", "epochs": "1", "seeds": "1"}
    return [
        str(word) for name, value in (flags | changes).items() if value is not None for word in (f"--{name}", value)
    ]


def assert_refused(work: Path, capsys, argv: list[str], fragments: list[str]) -> None:
    before = sorted(work.rglob("*"))
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err and captured.out == ""
    for fragment in fragments:
        assert fragment in captured.err
    assert sorted(work.rglob("*")) == before


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def edit_config(work: Path, **changes) -> None:
    path = work / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_line(path: Path, number: int, text: str) -> None:
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[number - 1] = text
    path.write_text("\n".join(lines), encoding="utf-8")


BROKEN_MODELS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "directory missing": (lambda w: shutil.rmtree(w / "model"), ["--model", "no such directory"]),
    "a file": (lambda w: (shutil.rmtree(w / "model"), (w / "model").touch()), ["--model", "is a file"]),
    "no config": (lambda w: (w / "model/config.json").unlink(), ["config.json", "no such file"]),
    "config is no JSON": (lambda w: cut_in_half(w / "model/config.json"), ["config.json, line ", "broken JSON"]),
    "config is a list": (lambda w: (w / "model/config.json").write_text("[]"), ["config.json", "model_type"]),
    "unknown model_type": (lambda w: edit_config(w, model_type="nonsense"), ["config.json", "nonsense"]),
    "no text classifier": (lambda w: edit_config(w, model_type="vit"), ["vit", "no head", "SequenceClassification"]),
    "field of wrong type": (lambda w: edit_config(w, hidden_size="abc"), ["config.json", "hidden_size"]),
    "impossible heads": (lambda w: edit_config(w, num_attention_heads=5), ["--model", "attention heads (5)"]),
    "no weights": (lambda w: (w / "model/model.safetensors").unlink(), ["model.safetensors", "no such file"]),
    "weights truncated": (lambda w: cut_in_half(w / "model/model.safetensors"), ["model.safetensors", "truncated"]),
    "weights empty": (lambda w: (w / "model/model.safetensors").write_bytes(b""), ["model.safetensors", "truncated"]),
    "weights garbage": (
        lambda w: (w / "model/model.safetensors").write_bytes(b"no weights here" * 9),
        ["model.safetensors", "corrupt"],
    ),
    "other width": (lambda w: edit_config(w, hidden_size=64), ["(32,)", "(64,)", "config.json"]),
    "other vocabulary": (lambda w: edit_config(w, vocab_size=99), ["(16, 32)", "(99, 32)", "word_embeddings"]),
    "layers lacking": (lambda w: edit_config(w, num_hidden_layers=3), ["asks for 16 weights", "layer.2."]),
    "layers too many": (lambda w: edit_config(w, num_hidden_layers=1), ["layer.1.", "does not ask for"]),
    "no tokenizer": (
        lambda w: [file.unlink() for file in (w / "model").glob("tokenizer*")],
        ["--model", "tokenizer"],
    ),
    "tokenizer no JSON": (lambda w: cut_in_half(w / "model/tokenizer.json"), ["--model", "tokenizer can't be read"]),
    "tokenizer too large": (lambda w: edit_config(w, vocab_size=6), ["tokenizer", "vocab_size is 6"]),
    "summary no JSON": (
        lambda w: ((w / "model/training").mkdir(), (w / "model/training/summary.json").write_text("{")),
        ["summary.json", "JSON"],
    ),
}


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_broken_model(name, work, capsys):
    damage, fragments = BROKEN_MODELS[name]
    damage(work)
    assert_refused(work, capsys, arguments(work), fragments)


BROKEN_DATA: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "folder missing": (lambda f: shutil.rmtree(f), ["train.tsv", "no such file", "layout"]),
    "file missing": (lambda f: (f / "dev.tsv").unlink(), ["dev.tsv", "no such file"]),
    "column missing": (lambda f: edit_line(f / "train.tsv", 1, "sentence\tclass"), ["train.tsv, line 1", "'label'"]),
    "field missing": (lambda f: edit_line(f / "train.tsv", 7, "good film"), ["train.tsv, line 7", "1 fields"]),
    "blank line": (lambda f: edit_line(f / "train.tsv", 7, ""), ["train.tsv, line 7"]),
    "unknown label": (
        lambda f: edit_line(f / "dev.tsv", 5, "good film\tgreat"),
        ["dev.tsv, line 5", "'great'", "allowed are 0, 1"],
    ),
    "empty file": (lambda f: (f / "train.tsv").write_text(""), ["train.tsv", "empty"]),
    "header only": (lambda f: (f / "dev.tsv").write_text("sentence\tlabel\n"), ["dev.tsv", "no rows"]),
    "one row": (lambda f: (f / "train.tsv").write_text("sentence\tlabel\ngood\t1\n"), ["sst2", "train split is empty"]),
    "one label": (
        lambda f: (f / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"good {i}\t1\n" for i in range(40))),
        ["sst2", "one label"],
    ),
    "not UTF-8": (
        lambda f: (f / "dev.tsv").write_bytes(b"sentence\tlabel\ngood\t1\ncaf\xe9\t0\n"),
        ["dev.tsv, line 3", "not UTF-8"],
    ),
}


@pytest.mark.parametrize("name", BROKEN_DATA)
def test_broken_data(name, work, capsys):
    damage, fragments = BROKEN_DATA[name]
    damage(work / "SST-2")
    assert_refused(work, capsys, arguments(work), fragments)


BAD_FLAGS: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "unknown task": ({"task": "sst3"}, ["--task sst3", "sample-sentiment, cola, sst2", ".jsonl"]),
    "data for the sample": ({"task": "sample-sentiment"}, ["--data", "leave out --data"]),
    "data missing": ({"data": "/no/such/folder"}, ["--data /no/such/folder", "no such folder", "train.tsv"]),
    "no task": ({"task": None}, ["--task is missing", "--help"]),
    "no output": ({"output": None}, ["--output is missing"]),
    "empty model": ({"model": " "}, ["--model is empty"]),
    "unknown flag": ({"learning-rate": "1"}, ["unknown argument --learning-rate", "--help"]),
    "abbreviated flag": ({"learning": "1"}, ["unknown argument --learning"]),
    "text for a number": ({"learning_rate": "fast"}, ["--learning_rate fast", "a number"]),
    "fraction of an epoch": ({"epochs": "1.5"}, ["--epochs 1.5", "a whole number"]),
    "text for dropout": ({"dropout": "some"}, ["--dropout some", "a number or null"]),
    "negative rate": ({"learning_rate": "-1"}, ["--learning_rate -1", "greater than 0"]),
    "rate not a number": ({"learning_rate": "nan"}, ["--learning_rate nan", "a number"]),
    "no seed": ({"seeds": "0"}, ["--seeds 0", "at least 1"]),
    "negative batch": ({"batch_size": "-4"}, ["--batch_size -4", "at least 1"]),
    "infinite decay": ({"weight_decay": "inf"}, ["--weight_decay inf", "a number"]),
    "negative decay": ({"weight_decay": "-0.1"}, ["--weight_decay -0.1", "at least 0"]),
    "dropout of one": ({"dropout": "1"}, ["--dropout 1", "less than 1"]),
    "growing layer decay": ({"layer_decay": "1.5"}, ["--layer_decay 1.5", "at most 1"]),
    "no patience": ({"patience": "0"}, ["--patience 0", "at least 1"]),
    "negative search": ({"search": "-1"}, ["--search -1", "at least 0"]),
    "text for a rank": ({"lora": "low"}, ["--lora low", "a whole number or null"]),
    "LoRA of nothing": ({"lora": "4", "from_scratch": "true"}, ["--lora", "leave out --from_scratch"]),
    "column for a task": ({"label": "stars"}, ["--label", "leave it out"]),
    "file missing": ({"task": "no/such.csv", "data": None, "text": "a", "label": "b"}, ["no/such.csv", "no such file"]),
    "length beyond the model": ({"max_length": "33"}, ["--max_length 33", "at most 32"]),
    "contradiction": ({"compare": "true", "from_scratch": "true"}, ["--compare", "leave out --from_scratch"]),
    "switch with a text": ({"compare": "perhaps"}, ["--compare perhaps", "true or false"]),
    "unreachable Hub id": ({"model": "nobody/nothing"}, ["--model nobody/nothing", "Hub"]),
    "unreachable Hub data": ({"data": None}, ["nyu-mll/glue", "--data", "SST-2/train.tsv"]),
    "too many slashes": ({"model": "a/b/c"}, ["--model a/b/c", "no such directory"]),
}


@pytest.mark.parametrize("name", BAD_FLAGS)
def test_bad_flag(name, work, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable is read at import
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    changes, fragments = BAD_FLAGS[name]
    assert_refused(work, capsys, arguments(work, **changes), fragments)


def test_output_with_another_run_is_refused_before_anything_is_read(work, capsys):
    (work / "out").mkdir()
    (work / "out" / "results.json").write_text("{}")
    shutil.rmtree(work / "model")
    assert_refused(work, capsys, arguments(work), ["--output", "already holds something"])


@pytest.mark.parametrize("flag", ["output", "report"])
def test_place_below_a_file_is_refused_at_once(flag, work, capsys):
    (work / "file").touch()
    assert_refused(work, capsys, arguments(work, **{flag: work / "file" / "x"}), [f"--{flag}", "is a file"])


def test_batch_that_processes_cannot_share(work, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert_refused(work, capsys, arguments(work, batch_size="16"), ["--batch_size 16", "3 processes"])


def test_report_that_is_a_directory(work, capsys):
    assert_refused(work, capsys, arguments(work, report=str(work)), ["--report", "is a directory"])


def test_the_process_itself_ends_with_status_two_and_one_line(work):
    edit_config(work, hidden_size=64)
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *arguments(work)],
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not (work / "out").exists()
