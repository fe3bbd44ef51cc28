"""Protects what is published: cards state what the run's files state, their code runs, nothing of a machine leaks, and
`verify` and `push` let only such a directory through."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_stand_in import READ_TOKEN, TOKEN, running_hub
from huggingface_hub import ModelCard, constants
from safetensors.torch import load
from test_pretrain import TINY, without

import finetune.cli
import pretrain.cli
from hf_tiny_transformer import verify
from hf_tiny_transformer.__main__ import main
from hf_tiny_transformer.card_figures import read_figures
from hf_tiny_transformer.cards import estimate_energy, public_name, run_snippet, snippet
from hf_tiny_transformer.push import files_to_send, send
from hf_tiny_transformer.runs import RunError, UserError, run_cli

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pretrained(corpus_file, tmp_path_factory) -> Path:
    """A run of 12 steps, absolute paths on its command line."""
    output = tmp_path_factory.mktemp("published") / "tiny"
    flags = ["--corpus", str(corpus_file), "--output", str(output), *TINY, "--max-steps=12", "--license=cc-by-sa-4.0"]
    assert run_cli(lambda: pretrain.cli.main(flags)) == 0
    return output


@pytest.fixture(scope="module")
def finetuned(pretrained, tmp_path_factory) -> Path:
    """Two seeds on a file of one's own, beside simpler methods."""
    folder = tmp_path_factory.mktemp("finetuned")
    generator, lines = random.Random(0), ["text,label"]
    for _ in range(120):
        good = generator.random() < 0.5
        lines.append(f"the music is {'lovely' if good else 'weak'} {generator.random():.3f},{'yes' if good else 'no'}")
    (folder / "data.csv").write_text("\n".join(lines) + "\n")
    flags = [*("--model", str(pretrained), "--task", str(folder / "data.csv"), "--text", "text", "--label", "label")]
    flags += ["--output", str(folder / "judge"), "--seeds", "2", "--epochs", "2", "--compare"]
    assert finetune.cli.main(flags) == 0
    return folder / "judge"


@pytest.fixture
def opened(monkeypatch):
    """What runs in processes of its own is taken to be well: these tests are about the rest."""
    monkeypatch.setattr(verify, "run_apart", lambda *_: (True, ""))


def failures(directory: Path) -> dict[str, str]:
    return {finding.check: finding.problem for finding in verify.verify(directory) if finding.problem is not None}


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def test_the_cards_of_pretraining_state_the_runs_figures(pretrained):
    card = ModelCard((pretrained / "README.md").read_text())
    summary = json.loads((pretrained / "training" / "summary.json").read_text())
    weights = load((pretrained / "model.safetensors").read_bytes())
    assert f"| parameters | {sum(tensor.numel() for tensor in weights.values()):,} |" in card.text
    assert f"| {summary['validation_loss']:.3f} |" in card.text
    assert "| documents | 300 (0 exact duplicates dropped) |" in card.text
    assert card.data.license == "cc-by-sa-4.0" and "`cc-by-sa-4.0`." in card.text
    (result,) = card.data.eval_results
    assert (result.dataset_split, result.metric_type) == ("validation", "loss")
    assert result.metric_value == pytest.approx(summary["validation_loss"], abs=1e-6)
    assert len(summary["snippet_printed"].splitlines()) == 3 and summary["snippet_printed"] in card.text


def test_the_cards_of_fine_tuning_state_means_and_the_published_seeds_figures(finetuned):
    card = ModelCard((finetuned / "README.md").read_text())
    results = json.loads((finetuned / "results.json").read_text())
    mean, best = results["test"], results["seeds"][results["best_seed"] - 1]["test"]
    row = f"| {100 * mean['mean']:.2f} ± {100 * mean['std']:.2f} | {100 * best:.2f} |"
    assert f"| this model | test | {results['data']['counts']['test']} | accuracy {row}" in card.text
    assert "| majority class | test |" in card.text
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", round(best, 6))
    assert card.data.license is None and "None is stated." in card.text
    assert "--model tiny --task data.csv" in results["command"]


def test_energy_is_time_by_watts(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    estimate = estimate_energy(3600, processes=2)
    assert estimate["kwh"] == pytest.approx(6 * 10 / 1000) and "assumed 10 W" in estimate["method"]


def test_a_gpu_of_unknown_power_gets_no_estimate(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for answer, kwh in (("700.00\n", 0.7), ("[N/A]\n", None)):
        done = subprocess.CompletedProcess([], 0, stdout=answer)
        monkeypatch.setattr(subprocess, "run", lambda *_, done=done, **__: done)
        assert estimate_energy(3600)["kwh"] == kwh


@pytest.mark.parametrize(
    ("given", "published"),
    [
        ("/home/me/texts", "texts"),
        ("/home/me/*.txt", "*.txt"),
        ("--model=/home/me/model", "--model=model"),
        ("../texts", "texts"),
        ("~/texts", "texts"),
        (r"C:\texts\a.txt", "a.txt"),
        ("runs/mine", "runs/mine"),
        ("hub:nyu-mll/glue:sst2", "hub:nyu-mll/glue:sst2"),
        ("--seeds", "--seeds"),
    ],
)
def test_names_without_folders_of_this_machine(given, published):
    assert public_name(given) == published


@pytest.mark.parametrize("text", ["see /home/me/x", '"/tmp/run"', r'"C:\\data\\x"', "~/x", "file:///etc"])
def test_paths_are_seen(text):
    assert verify._MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["https://a.b/home/x", "and/or", "5/tmp/x", "runs/data/x", "a: / b", "TCP/IP ~ x"])
def test_other_slashes_are_let_be(text):
    assert not verify._MACHINE_PATH.search(text)


@pytest.mark.parametrize("made_by", ["pretrained", "finetuned"])
def test_what_the_commands_make_is_ready_to_be_published(made_by, request, capsys):
    """Opened by processes that lack this package; no path on the command lines that made it is left in it."""
    directory = request.getfixturevalue(made_by)
    before = {file: file.stat().st_mtime_ns for file in directory.rglob("*")}
    assert run_cli(lambda: main(["verify", str(directory)])) == 0
    lines = capsys.readouterr().out.splitlines()
    auto_map = json.loads((directory / "config.json").read_text())["auto_map"]
    assert {line for line in lines if line.startswith("opens with AutoModel")} == {
        f"opens with {name}: ok" for name in auto_map if name != "AutoConfig"
    }
    assert len(lines) > 12 and all(line.endswith(": ok") for line in lines)
    assert {file: file.stat().st_mtime_ns for file in directory.rglob("*")} == before, "nothing is left or changed"


def test_code_that_is_missing_or_fails_is_found(finetuned, tmp_path):
    broken = shutil.copytree(finetuned, tmp_path / "broken")
    (broken / "layers.py").unlink()
    edit(broken / "README.md", "print(pipe(", "print(no_such_name(")
    found = failures(broken)
    assert found.pop("card: code runs")
    assert found and all(check.startswith("opens with AutoModel") for check in found)
    assert all("layers.py" in problem for problem in found.values())


TAMPERED = {
    "a figure": ("README.md", "| this model | test |", "| this model | tests |", "card: figures"),
    "the metadata's figure": ("README.md", "value: ", "value: 1", "card: figures"),
    "results": ("results.json", '"parameters": ', '"parameters": 1', "card: figures"),
    "a section": ("README.md", "## Limits", "## Else", "card: sections"),
    "metadata": ("README.md", "library_name: transformers\n", "", "card: metadata"),
    "yaml": ("README.md", "library_name: ", "library_name: [", "card: metadata"),
    "model-index": ("README.md", "model-index:", "model-index: 5\nother:", "card: metadata"),
    "code": ("README.md", "```python", "```", "card: code runs"),
    "another directory": ("README.md", 'model_id = "."', 'model_id = "x"', "card: code runs"),
    "a path": ("results.json", '"model": "', '"model": "/home/me/', "no path of a machine"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_tampered_with_is_found(what, finetuned, tmp_path, opened):
    name, old, new, check = TAMPERED[what]
    copy = shutil.copytree(finetuned, tmp_path / "copy")
    assert not failures(copy)
    edit(copy / name, old, new)
    found = failures(copy)
    assert list(found) == [check] and any(word in found[check] for word in (name, "README.md", "the card"))


def test_pickles_and_broken_or_missing_files_are_found(pretrained, tmp_path, opened):
    copy = shutil.copytree(pretrained, tmp_path / "copy")
    assert list(copy.glob("checkpoints/*/*.pt")) and not failures(copy), "checkpoints stay here"
    torch.save({}, copy / "training" / "state.pt")
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-8])
    (copy / "README.md").unlink()
    assert list(failures(copy)) == ["no pickle", "weights in safetensors", "card: metadata"]
    (copy / "training" / "summary.json").write_text('{"steps": 1}')
    with pytest.raises(UserError, match=r"summary\.json: lacks what the card states"):
        read_figures(copy)


@pytest.mark.parametrize(
    ("recipe", "stages"), [("decoder", [{"share": 1.0, "block_size": 16, "batch_size": 8}]), ("seq2seq", None)]
)
def test_other_families_cards_run_their_code(recipe, stages, corpus_file, tmp_path, opened):
    """Without examples in the recipe, too."""
    flags = [
        *without(TINY, "--stages", "--examples", "--vocab_size"),
        "--vocab_size=180",
        "--max-steps=2",
        "--examples=[]",
    ]
    flags += [f"--stages={json.dumps(stages)}" if stages else TINY[4]]
    flags += ["--recipe", recipe, "--corpus", str(corpus_file), "--output", str(tmp_path / recipe)]
    assert run_cli(lambda: pretrain.cli.main(flags)) == 0
    assert json.loads((tmp_path / recipe / "training" / "summary.json").read_text())["snippet_printed"]
    assert not failures(tmp_path / recipe)


def test_a_snippet_that_fails_is_loud_and_leaves_no_card(corpus_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pretrain.publish, "PIPELINE_SNIPPET", "{model_id}\nraise OSError('{task}{use}'[:4])")
    flags = ["--corpus", str(corpus_file), "--output", str(tmp_path / "run"), *TINY, "--max-steps=2"]
    assert run_cli(lambda: pretrain.cli.main(flags)) == 1
    assert "no model card is written" in capsys.readouterr().err
    assert (tmp_path / "run" / "model.safetensors").is_file() and not (tmp_path / "run" / "README.md").exists()
    with pytest.raises(RunError, match="NameError"):
        run_snippet("nothing", tmp_path)
    with pytest.raises(UserError, match="python block"):
        snippet("# no code")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "no-such-place"], ["no-such-place", "no such directory"]),
        (["verify"], ["DIR"]),
        (["push", "--model", "no-such-place", "--repo", "x"], ["no such directory"]),
        (["push", "--model", "no-such-place", "--repo", "a b"], ["--repo a b"]),
        (["push", "--model", "no-such-place", "--repo", "x", "--yes"], ["HF_HUB_OFFLINE"]),
    ],
)
def test_wrong_arguments_are_one_line(arguments, words, capsys):
    assert run_cli(lambda: main(arguments)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(word in message for word in words)


@pytest.mark.parametrize("application", ["pretrain", "finetune"])
def test_a_licence_that_the_hub_cannot_know_is_refused(application, tmp_path, capsys):
    flags = ["--output", str(tmp_path / "out"), "--license", "My Licence"]
    if application == "pretrain":
        assert run_cli(lambda: pretrain.cli.main(flags)) == 2
    else:
        assert finetune.cli.main([*flags, "--model", "x", "--task", "sst2"]) == 2
    assert "--license My Licence" in capsys.readouterr().err


@pytest.fixture
def hub(monkeypatch):
    """A stand-in, which huggingface_hub in this process takes for the Hub."""
    with running_hub() as hub:
        for name, value in {"ENDPOINT": hub.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def test_push_sends_a_model_and_its_records_and_nothing_else(pretrained, tmp_path):
    """The real command, in a process of its own."""
    with running_hub() as hub:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "hf_tiny_transformer", "push", "--model", str(pretrained)]
        command += ["--repo", "mine", "--private", "--yes"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(hub.files) == ["someone/mine"] and hub.private == {"someone/mine"} and len(hub.commits) == 1
    sent = hub.files["someone/mine"]
    here = {path.relative_to(pretrained).as_posix() for path in pretrained.rglob("*") if path.is_file()}
    assert set(sent) == {name for name in here if not name.startswith("checkpoints/")}
    assert all(sent[name] == (pretrained / name).read_bytes() for name in sent if name != "README.md")
    assert 'model_id = "someone/mine"' in sent["README.md"].decode()
    assert done.stdout.splitlines()[-1].endswith(hub.url + "/someone/mine/commit/" + "0" * 40)


def test_without_yes_push_lists_what_it_would_send(finetuned, hub, opened, capsys):
    assert run_cli(lambda: main(["push", "--model", str(finetuned), "--repo", "mine"])) == 0
    printed = capsys.readouterr().out
    assert "kB  training/loss.png" in printed and "results.json" in printed and "predictions.csv" not in printed
    assert f"to {hub.url}/mine: nothing is sent without --yes" in printed and not hub.requests


def test_push_again_sends_what_changed(pretrained, hub, monkeypatch):
    files = files_to_send(pretrained)
    send(files, "mine", private=False)
    send(files, "mine", private=False)
    assert len(hub.commits) == 1, "nothing had changed"
    hub.files["someone/mine"]["config.json"] = b"{}"
    send(files, "mine", private=False)
    assert hub.commits[1]["files"] == ["config.json"]
    with pytest.raises(RunError, match="is there and public"):
        send(files, "mine", private=True)
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    with pytest.raises(UserError, match="may not write there"):
        send(files, "other", private=False)


@pytest.mark.parametrize(
    ("trouble", "told"),
    [("none", "hf auth login"), ("wrong", "does not know this token"), ("gone", "cannot be reached")],
)
def test_push_stops_without_a_token_with_a_wrong_one_and_without_the_hub(trouble, told, hub, monkeypatch, capsys):
    """Before it checks anything."""
    if trouble == "gone":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr("hf_tiny_transformer.push.get_token", {"none": lambda: None, "wrong": lambda: "x"}[trouble])
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert run_cli(lambda: main(["push", "--model", "no-such-place", "--repo", "mine", "--yes"])) == 2
    message = capsys.readouterr().err
    assert told in message and message.count("\n") == 1 and not hub.files


def test_the_hubs_word_on_the_card_is_passed_on(pretrained, hub, tmp_path):
    copy = shutil.copytree(pretrained, tmp_path / "copy")
    edit(copy / "README.md", "license: cc-by-sa-4.0", "license: no-such")
    with pytest.raises(RunError, match='"license" must be one of'):
        send(files_to_send(copy), "mine", private=False)
    assert not hub.commits


def test_push_does_not_send_what_is_not_ready(pretrained, tmp_path, monkeypatch, opened, capsys):
    copy = shutil.copytree(pretrained, tmp_path / "copy")
    torch.save({}, copy / "state.pt")
    monkeypatch.setattr("hf_tiny_transformer.push.send", lambda *_, **__: pytest.fail("sent"))
    assert run_cli(lambda: main(["push", "--model", str(copy), "--repo", "mine"])) == 1
    captured = capsys.readouterr()
    assert "no pickle: FAILED: state.pt" in captured.out and "1 check failed" in captured.err
