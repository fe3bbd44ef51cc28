"""Protects the promise that a wrong model or flag ends `python -m finetune` in one clear line, status 2 and no file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import huggingface_hub.constants
import pytest
import torch
from toys import bert_config, launch, run, save, sentiments, wordpiece
from transformers import BertForMaskedLM


@pytest.fixture(scope="session")
def healthy(tmp_path_factory) -> Path:
    """A folder with `model/` and `SST-2/` in which nothing is wrong; each test breaks one thing in a copy."""
    folder = tmp_path_factory.mktemp("healthy")
    torch.manual_seed(0)
    save(BertForMaskedLM(bert_config(num_hidden_layers=2, vocab_size=16)), wordpiece(["good", "bad"]), folder / "model")
    (folder / "SST-2").mkdir()
    rows = [f"{text}\t{label}" for text, label in sentiments(40, 0)]
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
    given = {name: str(value) for name, value in (flags | changes).items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name}", value)]


def assert_refused(work: Path, capsys, argv: list[str], fragments: list[str]) -> None:
    before = sorted(work.rglob("*"))
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err and captured.out == ""
    for fragment in fragments:
        assert fragment in captured.err, captured.err
    assert sorted(work.rglob("*")) == before


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def edit_config(work: Path, **changes) -> None:
    path = work / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BROKEN_MODELS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "directory missing": (lambda w: shutil.rmtree(w / "model"), ["--model", "no such directory"]),
    "a file": (lambda w: (shutil.rmtree(w / "model"), (w / "model").touch()), ["--model", "is a file"]),
    "no config": (lambda w: (w / "model/config.json").unlink(), ["config.json", "no such file"]),
    "config is not JSON": (lambda w: cut_in_half(w / "model/config.json"), ["config.json, line ", "broken JSON"]),
    "config is a list": (lambda w: (w / "model/config.json").write_text("[]"), ["config.json", "not a JSON object"]),
    "unknown model_type": (lambda w: edit_config(w, model_type="nonsense"), ["config.json", "nonsense"]),
    "no text classifier": (lambda w: edit_config(w, model_type="vit"), ["vit", "no head", "SequenceClassification"]),
    "field of wrong type": (lambda w: edit_config(w, hidden_size="abc"), ["config.json", "hidden_size"]),
    "impossible heads": (lambda w: edit_config(w, num_attention_heads=5), ["--model", "attention heads (5)"]),
    "no weights": (lambda w: (w / "model/model.safetensors").unlink(), ["model.safetensors", "no such file"]),
    "weights truncated": (lambda w: cut_in_half(w / "model/model.safetensors"), ["model.safetensors", "truncated"]),
    "weights empty": (lambda w: (w / "model/model.safetensors").write_bytes(b""), ["model.safetensors", "truncated"]),
    "weights garbage": (lambda w: (w / "model/model.safetensors").write_bytes(b"none" * 9), ["corrupt"]),
    "other width": (lambda w: edit_config(w, hidden_size=64), ["(32,)", "(64,)", "config.json"]),
    "other vocabulary": (lambda w: edit_config(w, vocab_size=99), ["(16, 32)", "(99, 32)", "word_embeddings"]),
    "layers lacking": (lambda w: edit_config(w, num_hidden_layers=3), ["16 weights", "are missing", "layer.2."]),
    "layers too many": (lambda w: edit_config(w, num_hidden_layers=1), ["layer.1.", "does not have"]),
    "no tokenizer": (lambda w: [f.unlink() for f in (w / "model").glob("tokenizer*")], ["--model", "tokenizer"]),
    "tokenizer no JSON": (lambda w: cut_in_half(w / "model/tokenizer.json"), ["--model", "tokenizer cannot be read"]),
    "tokenizer too large": (lambda w: edit_config(w, vocab_size=6), ["tokenizer", "vocab_size in config.json is 6"]),
}


@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_broken_model(name, work, capsys):
    damage, fragments = BROKEN_MODELS[name]
    damage(work)
    assert_refused(work, capsys, arguments(work), fragments)


BAD_FLAGS: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "unknown task": ({"task": "sst3"}, ["--task sst3", "sample-sentiment, cola, sst2", ".jsonl"]),
    "data for the sample": ({"task": "sample-sentiment"}, ["--data", "leave out --data"]),
    "data missing": ({"data": "/no/such/folder"}, ["--data /no/such/folder", "no such folder", "train.tsv"]),
    "no task": ({"task": None}, ["--task is required", "--help"]),
    "no output": ({"output": None}, ["--output is required"]),
    "empty model": ({"model": " "}, ["--model is empty"]),
    "unknown flag": ({"learning-speed": "1"}, ["did you mean --learning-rate?", "--help"]),
    "abbreviated flag": ({"learning": "1"}, ["unknown argument --learning"]),
    "text for a number": ({"learning_rate": "fast"}, ["--learning-rate fast", "a number"]),
    "fraction of an epoch": ({"epochs": "1.5"}, ["--epochs 1.5", "a whole number"]),
    "text for dropout": ({"dropout": "some"}, ["--dropout some", "a number or null"]),
    "negative rate": ({"learning_rate": "-1"}, ["--learning-rate -1", "greater than 0"]),
    "rate not a number": ({"learning_rate": "nan"}, ["--learning-rate nan", "a number"]),
    "no seed": ({"seeds": "0"}, ["--seeds 0", "at least 1"]),
    "negative batch": ({"batch_size": "-4"}, ["--batch-size -4", "at least 1"]),
    "infinite decay": ({"weight_decay": "inf"}, ["--weight-decay inf", "a number"]),
    "negative decay": ({"weight_decay": "-0.1"}, ["--weight-decay -0.1", "at least 0"]),
    "dropout of one": ({"dropout": "1"}, ["--dropout 1", "less than 1"]),
    "no patience": ({"patience": "0"}, ["--patience 0", "at least 1"]),
    "negative search": ({"search": "-1"}, ["--search -1", "at least 0"]),
    "text for a rank": ({"lora": "low"}, ["--lora low", "a whole number or null"]),
    "column for a task": ({"label": "stars"}, ["--label", "leave it out"]),
    "file missing": ({"task": "no/such.csv", "data": None, "text": "a", "label": "b"}, ["no/such.csv", "no such file"]),
    "length beyond the model": ({"max_length": "33"}, ["--max-length 33", "at most 32"]),
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


@pytest.mark.parametrize("size", [1e38, 1e300])
def test_a_loss_that_is_not_finite_publishes_nothing(size, work, capsys):
    rows = [f"{text},{size * (label + i / 100)}" for i, (text, label) in enumerate(sentiments(60, 0))]
    (work / "scores.csv").write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    own = {"task": work / "scores.csv", "data": None, "text": "text", "label": "label"}
    assert run(*arguments(work, **own)) == 3
    assert "the training loss is " in capsys.readouterr().err
    assert not list(work.glob("out*"))


def test_weights_that_are_not_finite_are_refused(work, capsys):
    model = BertForMaskedLM.from_pretrained(work / "model")
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[7] = float("nan")  # of a token that few texts have
    model.save_pretrained(work / "model")
    capsys.readouterr()
    assert run(*arguments(work)) == 3
    assert "word_embeddings.weight has numbers that are not finite" in capsys.readouterr().err
    assert not list(work.glob("out*"))


def test_output_with_another_run_is_refused_before_anything_is_read(work, capsys):
    (work / "out").mkdir()
    (work / "out" / "results.json").write_text("{}")
    shutil.rmtree(work / "model")
    assert_refused(work, capsys, arguments(work), ["--output", "is not empty"])


@pytest.mark.parametrize("flag", ["output", "report"])
def test_place_below_a_file_is_refused_at_once(flag, work, capsys):
    (work / "file").touch()
    assert_refused(work, capsys, arguments(work, **{flag: work / "file" / "x"}), [f"--{flag}", "is a file"])


def test_batch_that_processes_cannot_share(work, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert_refused(work, capsys, arguments(work, batch_size="16"), ["--batch-size 16", "3 processes"])


def test_report_that_is_a_directory(work, capsys):
    assert_refused(work, capsys, arguments(work, report=str(work)), ["--report", "is a directory"])


def test_the_process_itself_ends_with_status_two_and_one_line(work):
    edit_config(work, hidden_size=64)
    process = launch(*arguments(work))
    printed, error = process.communicate(timeout=120)
    assert process.returncode == 2 and printed == ""
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert not (work / "out").exists()
