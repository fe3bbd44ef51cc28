"""Protects `verify`: it passes what our commands write, finds what was damaged, and runs no foreign code."""

import json

import pytest
import torch
from cards import edit, failures
from commands import fails, run
from safetensors.torch import load_file, save_file

from hf_tiny_transformer.common.files import write_sums
from hf_tiny_transformer.publish import push, verify
from hf_tiny_transformer.publish.card import THIS_DIRECTORY
from hf_tiny_transformer.publish.card_code import refused_code


@pytest.mark.slow
def test_a_written_model_is_ready_to_be_published(published, capsys):
    """It is opened by processes without this package, and nothing is left or changed."""
    before = {file: file.stat().st_mtime_ns for file in published.rglob("*")}
    assert run("verify", published) == 0
    lines = capsys.readouterr().out.splitlines()
    auto_map = json.loads((published / "config.json").read_text())["auto_map"]
    assert {line for line in lines if line.startswith("opens with AutoModel")} == {
        f"opens with {name}: ok" for name in auto_map if name != "AutoConfig"
    }
    assert len(lines) > 10 and all(line.endswith(": ok") for line in lines)
    assert {file: file.stat().st_mtime_ns for file in published.rglob("*")} == before


@pytest.mark.slow
def test_code_that_is_missing_or_fails_is_found(copy):
    (copy / "layers.py").unlink()
    edit(copy / "README.md", "pipe = ", "model = AutoModelForNothing.from_pretrained(model_id)\npipe = ")
    found = failures(copy)
    assert found.pop("card: code runs")
    assert found and all(check.startswith("opens with AutoModel") for check in found)
    assert all("layers.py" in problem for problem in found.values())


TAMPERED = {
    "a row": ("README.md", "| documents | 300 |", "| documents | 301 |", "card: figures"),
    "a figure of the metadata": ("README.md", "value: 2.5", "value: 2.6", "card: figures"),
    "a figure less": ("training/card.json", '"metric": "loss"', '"metric": "accuracy"', "card: figures"),
    "the facts": ("training/card.json", "12,345", "12,346", "card: figures"),
    "a file outside": ("training/card.json", '"results.json"', '"../results.json"', "card: figures"),
    "a pointer": ("training/card.json", "/losses/0", "/losses/1", "card: figures"),
    "the results": ("results.json", "0.71234567", "0.72", "card: figures"),
    "metadata": ("README.md", "library_name: transformers\n", "", "card: metadata"),
    "yaml": ("README.md", "library_name: ", "library_name: [", "card: metadata"),
    "model-index": ("README.md", "model-index:", "model-index: 5\nother:", "card: metadata"),
    "no code": ("README.md", "```python", "```", "card: code runs"),
    "another model": ("README.md", 'model_id = "."', 'model_id = "x"', "card: code runs"),
    "other code": ("README.md", "pipe = ", "__import__('os').system('touch it-ran')\npipe = ", "card: code runs"),
    "a local path": ("results.json", '"tiny"', '"/home/me/tiny"', "no local path"),
    "a pickle": ("results.json", "", "", "no pickle"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_damage_is_found(what, copy, opened):
    name, old, new, check = TAMPERED[what]
    edit(copy / name, old, new)
    if what == "a pickle":
        torch.save({}, copy / "training" / "state.pt")
    found = failures(copy)
    assert list(found) == [check]
    assert any(word in found[check] for word in (name, "README.md", "training/card.json", "state.pt"))


def test_broken_and_missing_files_are_found(copy):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-8])
    (copy / "README.md").unlink()
    assert "opens with AutoModel" in (found := failures(copy)) and "card: metadata" in found


def test_numbers_that_are_not_finite_and_flipped_bits_are_found(copy, opened):
    write_sums(copy, leave_out=("checkpoints",))
    assert failures(copy) == {}
    weights = load_file(copy / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("inf")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    edit(copy / "README.md", "A tiny", "A very tiny")  # people may
    found = failures(copy)
    assert list(found) == ["weights are finite", "checksums"]
    assert "model.safetensors is damaged" in found["checksums"]


def change(file, **fields) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | fields))


def name_a_tokenizer(directory) -> None:
    auto_map = json.loads((directory / "config.json").read_text())["auto_map"]
    change(directory / "config.json", auto_map=auto_map | {"AutoTokenizer": ["payload.Tokenizer", None]})


FOREIGN = {
    "our own field": (name_a_tokenizer, "config.json: auto_map"),
    "a pipeline": (lambda d: change(d / "config.json", custom_pipelines={"fill-mask": {}}), "custom_pipelines"),
    "a tokenizer": (lambda d: change(d / "tokenizer_config.json", auto_map=["payload.T", None]), "auto_map"),
    "a class on the Hub": (lambda d: change(d / "tokenizer_config.json", tokenizer_class="org/repo--a.T"), "tokenizer"),
    "any other JSON": (lambda d: change(d / "training" / "x.json", deep=[{"auto_map": {"A": "b"}}]), "x.json: deep.0."),
    "one more file": (lambda d: (d / "payload.py").touch(), "payload.py"),
    "a file in a folder": (lambda d: (d / "training" / "generate.py").touch(), "generate.py"),
    "a changed file": (lambda d: (d / "layers.py").write_text((d / "layers.py").read_text() + "\n"), "layers.py"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_nothing_runs_or_is_uploaded_where_there_is_foreign_code(what, copy, monkeypatch, capsys):
    tamper, problem = FOREIGN[what]
    tamper(copy)
    monkeypatch.setattr(verify, "run_apart", lambda *_: pytest.fail("run"))
    monkeypatch.setattr(push, "upload", lambda *_, **__: pytest.fail("uploaded"))
    found = failures(copy)
    assert list(found) == ["no foreign code"] and problem in found["no foreign code"]
    assert run("push", "--model", copy, "--repo", "mine") == 1
    assert "no foreign code: FAILED" in capsys.readouterr().out


OPEN = f'from transformers import pipeline\n\n{THIS_DIRECTORY}\npipe = pipeline("fill-mask", model=model_id)\n'


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "from transformers import utils",
        'pipe = pipeline("fill-mask", model="org/repo", trust_remote_code=True)',
        'model = AutoModel.from_pretrained("org/repo", trust_remote_code=True)',
        "model = AutoModel.from_pretrained(model_id, trust_remote_code=True, code_revision='x')",
        'model_id = "org/repo"  # this directory',
        "print(pipe('a', eval('1')))",
        "print(pipe('a' + eval('1')))",
        "print(pipe(f'{eval(1)}'))",
        "print(pipe('a\\'))\neval('1')",
        "print(pipe('a'))\reval('1')",
        "print(pipe('''))\nprint(pipe('''))",
        "print(pipe('a')); eval('1')",
    ],
)
def test_other_code_in_a_card_is_refused(line):
    for text in ("it's", 'a "b"', "a\\\n```", "both '\""):
        assert refused_code(f"{OPEN}print(pipe({text!r}))\n") is None
    assert refused_code(OPEN + line + "\n") is not None


def test_local_paths_are_seen_and_other_slashes_are_not():
    for text in ("see /home/me/x", '"/tmp/run"', r'"C:\\data\\x"', "~/x", "file:///etc"):
        assert verify._LOCAL_PATH.search(text), text
    for text in ("https://a.b/home/x", "and/or", "5/tmp/x", "runs/data/x", "a: / b", "TCP/IP ~ x"):
        assert not verify._LOCAL_PATH.search(text), text


def test_bad_arguments_are_one_line(capsys):
    assert "no such directory" in fails(capsys, "verify", "no-such-place")
    assert "model is required" in fails(capsys, "verify")
