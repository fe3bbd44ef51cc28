"""Protects --resume: a fine-tuning run that is killed at any instant ends with the same bytes as one that was not."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_finetune import REPOSITORY, bert_config, results_of, toy, toy_tokenizer, write_toy_glue
from test_glue import write_task
from test_tagging import command as ner_command
from test_tagging import names
from transformers import BertForMaskedLM

from finetune.cli import main
from finetune.order import LengthGroupedOrder
from finetune.resume import Unfinished

__all__ = ["names", "toy"]  # the fixtures

DRAWS = ["--learning_rate", "5e-3", "--batch_size", "32", "--dropout", "0.1", "--token_masking", "0.15"]


def sequence_command(toy: Path, output: Path, *flags: str, glue: Path | None = None) -> list[str]:
    places = ["--model", toy / "model", "--task", "sst2", "--data", glue or toy / "glue", "--output", output]
    return [*map(str, places), *DRAWS, "--epochs", "3", "--seeds", "2", *flags]


def figures(value):
    """results.json without what differs between two runs of one kind: the times, the command, the flag itself."""
    if isinstance(value, dict):
        differs = {"seconds", "timings", "energy", "command", "resume", "output"}
        return {key: figures(item) for key, item in value.items() if key not in differs}
    return [figures(item) for item in value] if isinstance(value, list) else value


def assert_same_run(one: Path, other: Path) -> None:
    assert figures(results_of(one)) == figures(results_of(other))
    for name in ("model.safetensors", "config.json", "predictions.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in other.iterdir())


def kill_after(line: str, arguments: list[str]) -> None:
    """Runs the real command and ends it by SIGKILL as soon as it has written `line`."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    written = ""
    for text in process.stderr:
        written += text
        if text.startswith(line):
            process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL, written


@pytest.mark.parametrize("kind", ["sequence", "tagging"])
def test_killed_in_the_second_seed_and_resumed_is_the_same_as_uninterrupted(kind, request, tmp_path, capsys):
    data, of_kind = ("toy", sequence_command) if kind == "sequence" else ("names", ner_command)
    data, flags = request.getfixturevalue(data), [*DRAWS, "--epochs", "3", "--seeds", "2"]
    output = tmp_path / "out"
    assert main(of_kind(data, tmp_path / "whole", *flags)) == 0
    arguments = of_kind(data, output, *flags)
    kill_after("seed 2  epoch 2/3", arguments)
    assert not output.exists()
    kept = {file.name for file in (tmp_path / "out.unfinished").iterdir() if not file.name.startswith(".")}
    assert kept == {"run.json", "epoch.pt", "seeds.pt"}
    assert_refused(arguments, capsys, "out.unfinished", "--resume, or remove")
    assert main([*arguments, "--resume"]) == 0
    said = [line.split("  train")[0] for line in capsys.readouterr().err.splitlines()]
    assert said[:2] == ["finished before: seed 1", "seed 2  goes on after epoch 2/3"]
    assert said[2:] == ["seed 2  epoch 3/3"]
    assert_same_run(output, tmp_path / "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "whole"]
    seconds = [sum(epoch["seconds"] for epoch in seed["epochs"]) for seed in results_of(output)["seeds"]]
    assert results_of(output)["timings"]["train and score all seeds"] >= sum(seconds) - 0.1, "of both parts"


def stop_at_every_save(monkeypatch) -> list[str]:
    """Each run in this process ends, as by Ctrl-C, where it first keeps something: by turns when that is written and
    when it is not. Returns the names of what was to be kept."""
    save, names = Unfinished.save, []

    def interrupted(self, name, facts, **states):
        names.append(name)
        if len(names) % 2:
            save(self, name, facts, **states)
        raise KeyboardInterrupt

    monkeypatch.setattr(Unfinished, "save", interrupted)
    return names


@pytest.mark.parametrize(
    "flags",
    [
        ["--search", "2", "--compare", "--epochs", "1", "--seeds", "1"],
        ["--lora", "2", "--epochs", "4", "--patience", "1"],
    ],
    ids=["search and compare", "lora and patience"],
)
def test_interrupted_at_everything_it_keeps(flags, toy, tmp_path, monkeypatch, capsys):
    assert main(sequence_command(toy, tmp_path / "whole", *flags)) == 0
    arguments = sequence_command(toy, tmp_path / "out", *flags, "--resume")
    with monkeypatch.context() as patch:
        saved = stop_at_every_save(patch)
        while main(arguments) == 130:
            assert len(saved) < 60
    assert set(saved) == {"epoch", "seeds"} | ({"trials", "scratch"} if "--search" in flags else set())
    capsys.readouterr()
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert main(arguments) == 0
    assert capsys.readouterr().err == f"{tmp_path / 'out'}: finished before\n"
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before


@pytest.fixture(scope="module")
def interrupted(toy, tmp_path_factory) -> Path:
    """A folder with glue/, model/, the run whole/, and the same one as out.unfinished, stopped in seed 2."""
    folder = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(toy / "model", folder / "model")
    shutil.copytree(toy / "glue", folder / "glue")
    assert main(sequence_command(folder, folder / "whole")) == 0
    with pytest.MonkeyPatch.context() as patch:
        save, count = Unfinished.save, []

        def terminated(self, name, facts, **states):
            save(self, name, facts, **states)
            count.append(name)
            if len(count) == 5:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)

        patch.setattr(Unfinished, "save", terminated)
        assert main(sequence_command(folder, folder / "out")) == 143
    return folder


@pytest.fixture
def work(interrupted, tmp_path) -> Path:
    """A copy to break."""
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    return tmp_path


def assert_refused(arguments: list[str], capsys, *fragments: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    *before, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and not any("Traceback" in line for line in before), error
    assert all(fragment in error for fragment in fragments), error


def test_sigterm_says_what_is_kept(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("finetune.experiment._all_seeds", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert main(sequence_command(toy, tmp_path / "out")) == 143
    assert capsys.readouterr().err == "error: SIGTERM: no epoch was finished\n" and list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_other_settings_data_or_weights_are_refused_by_name(work, capsys):
    arguments = sequence_command(work, work / "out", "--resume")
    assert_refused([*arguments, "--epochs", "4"], capsys, "run.json", "epochs 3", "now it is 4")
    assert_refused([*arguments, "--dropout", "0.2"], capsys, "run.json", "dropout 0.1")
    run = json.loads((work / "out.unfinished" / "run.json").read_text())
    (work / "out.unfinished" / "run.json").write_text(json.dumps(run | {"processes": 2}))
    assert_refused(arguments, capsys, "the number of processes", "2 then, 1 now")
    (work / "out.unfinished" / "run.json").write_text(json.dumps(run))
    torch.manual_seed(1)
    shutil.rmtree(work / "model")
    BertForMaskedLM(bert_config()).save_pretrained(work / "model")
    toy_tokenizer().save_pretrained(work / "model")
    assert_refused(arguments, capsys, "the weights of --model changed")
    other = write_toy_glue(work / "other", rows=401)
    assert_refused(sequence_command(work, work / "out", "--resume", glue=other), capsys, "the data has changed")
    dev = work / "glue" / "SST-2" / "dev.tsv"
    dev.write_text(dev.read_text().replace("plain0", "plain1"))
    assert_refused(arguments, capsys, "the data has changed", "sha256")
    assert_refused(sequence_command(work, work / "whole", "--resume"), capsys, "results.json", "the data has changed")
    assert not (work / "out").exists()


@pytest.mark.parametrize("name", ["epoch.pt", "seeds.pt"])
@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_file_is_named_and_what_it_held_is_done_again(name, damage, work, capsys):
    arguments, path = sequence_command(work, work / "out", "--resume"), work / "out.unfinished" / name
    path.write_bytes(path.read_bytes()[:-1000] if damage == "cut" else b"not a file of ours")
    assert_refused(arguments, capsys, str(path), "damaged", "remove it")
    if damage == "cut":
        path.unlink()
        assert main(arguments) == 0
        assert_same_run(work / "out", work / "whole")


@pytest.mark.parametrize("text", ["", "{}", '{"settings": {}}', "[1]"])
def test_a_damaged_run_file_is_named(text, work, capsys):
    (work / "out.unfinished" / "run.json").write_text(text)
    assert_refused(sequence_command(work, work / "out", "--resume"), capsys, "run.json", "can't be read", "remove")


def test_what_a_kill_left_half_written_goes(work, monkeypatch):
    (work / "out.unfinished" / ".epoch.pt-abc").write_bytes(b"half")
    monkeypatch.setattr(Unfinished, "remove", lambda self: None)
    assert main(sequence_command(work, work / "out", "--resume")) == 0
    assert {file.name for file in (work / "out.unfinished").iterdir()} == {"run.json", "epoch.pt", "seeds.pt"}
    first = {file: file.read_bytes() for file in (work / "out").iterdir() if file.name == "model.safetensors"}
    monkeypatch.undo()
    assert main(sequence_command(work, work / "out", "--resume")) == 0, "killed after the output, before the removal"
    assert {file: file.read_bytes() for file in first} == first
    assert_same_run(work / "out", work / "whole")
    assert not (work / "out.unfinished").exists()


def test_a_suite_goes_on_within_a_task(toy, tmp_path, monkeypatch, capsys):
    for name in ("CoLA", "STS-B"):
        write_task(tmp_path / "data", name)
    flags = ["--model", toy / "model", "--task", "glue", "--data", tmp_path / "data", "--seeds", 2, "--epochs", 1]
    whole, stopped = ([*map(str, flags), *DRAWS, "--output", str(tmp_path / name)] for name in ("whole", "out"))
    assert main(whole) == 0
    save, count = Unfinished.save, []

    def interrupt(self, name, facts, **states):
        save(self, name, facts, **states)
        count.append(name)
        if len(count) == 7:  # an epoch and a seed, four times in all
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "save", interrupt)
        assert main(stopped) == 130
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["CoLA", "STS-B.unfinished"]
    assert_refused([*stopped, "--resume", "--seeds", "3"], capsys, "CoLA", "seeds 2", "now it is 3")
    shutil.rmtree(tmp_path / "out" / "CoLA")
    assert_refused([*stopped, "--resume", "--seeds", "3"], capsys, "STS-B.unfinished", "seeds 2")
    assert main([*stopped, "--resume"]) == 0
    assert "seed 2  goes on after epoch 1/1" not in (printed := capsys.readouterr().err)
    assert printed.index("STS-B:") < printed.index("finished before: seed 1")
    for name in ("CoLA", "STS-B"):
        assert_same_run(tmp_path / "out" / name, tmp_path / "whole" / name)
    assert not list((tmp_path / "out").glob("*.unfinished"))


def test_the_order_of_a_later_epoch_is_that_of_the_epochs_before_it():
    lengths = [3 + i % 7 for i in range(100)]
    whole = LengthGroupedOrder(lengths, 8, seed=1)
    epochs = [list(whole) for _ in range(3)]
    assert list(LengthGroupedOrder(lengths, 8, seed=1, first=2)) == epochs[2]
