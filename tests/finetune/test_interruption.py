"""Protects --resume: a run that is killed at any instant ends with the same bits as one that was not."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import transformers
from toys import (
    DRAWS,
    assert_same_run,
    bert_config,
    launch,
    launch_several,
    results_of,
    run,
    save,
    wordpiece,
    write_glue,
)
from transformers import BertForMaskedLM

from finetune import run as run_module
from finetune.train import write_result
from finetune.trainer import FineTuner, LengthGroupedOrder, Progress
from hf_tiny_transformer.common.files import atomic_write_json

FLAGS = [*DRAWS, "--epochs", "4", "--seeds", "2"]


def command(toy: Path, output: Path, *flags, glue: Path | None = None) -> list:
    places = ["--model", toy / "stock", "--task", "sst2", "--data", glue or toy / "glue", "--output", output]
    return [*places, *FLAGS, *flags]


def family(pid: int) -> list[int]:
    """A process and those that it started, and so on."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if Path("/proc").is_dir() else []
    return [pid, *(each for child in children for each in family(int(child)))]


def kill_after(line: str, process, sign: int, times: int = 1) -> str:
    """End the command as soon as it has written `line` that often, and return what it wrote."""
    written = ""
    for text in process.stderr:
        written += text
        if line in text and written.count(line) == times:
            for pid in family(process.pid):
                os.kill(pid, sign)
    process.wait(timeout=120)
    assert process.returncode != 0, written
    return written


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_stopped_in_the_second_seed_and_resumed_is_the_same_as_uninterrupted(processes, tasks, tmp_path, capsys):
    """With dropout, masking and batches by length; one process by SIGTERM, two processes (gloo) by SIGKILL."""
    if processes > 1 and transformers.__version__.startswith("5.17."):
        pytest.skip("the Trainer of transformers 5.17 cannot resume on several CPU processes")
    arguments = [*tasks["sst2"], *FLAGS, "--epochs", "3"]
    stopped = [*arguments, "--output", tmp_path / "out"]
    if processes > 1:
        both = launch_several([[*arguments, "--output", tmp_path / "whole"], stopped])
        kill_after("seed 2  epoch 2/3", both, signal.SIGKILL, times=2)
    else:
        assert run(*arguments, "--output", tmp_path / "whole") == 0
        process = launch(*stopped)
        said = kill_after("seed 2  epoch 2/3", process, signal.SIGTERM)
        assert process.returncode == 143 and said.splitlines()[-1].startswith("error: SIGTERM: finished parts are in ")
    folder = tmp_path / "out.unfinished"
    assert not (tmp_path / "out").exists() and (folder / "seeds/1/result.json").is_file()
    assert {path.name for path in (folder / "seeds/1").iterdir()} == {"model.safetensors", "result.json"}
    capsys.readouterr()
    assert run(*stopped) == 2 and "continue with --resume" in capsys.readouterr().err
    if processes > 1:
        resumed = launch_several([[*stopped, "--resume"]])
        _, said = resumed.communicate(timeout=300)
        assert resumed.returncode == 0, said
    else:
        assert run(*stopped, "--resume") == 0
        said = capsys.readouterr().err
    assert "finished before: seed 1" in said and "seed 2  continues after epoch " in said
    assert "seed 1  epoch" not in said and "seed 2  epoch 1/3" not in said
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "whole"]
    seconds = [sum(epoch["seconds"] for epoch in seed["epochs"]) for seed in results_of(tmp_path / "out")["seeds"]]
    assert results_of(tmp_path / "out")["timings"]["train and score all seeds"] >= sum(seconds) - 0.1, "of both parts"


def interrupt(*_arguments) -> None:
    raise KeyboardInterrupt


def interrupt_at_every_write(monkeypatch) -> list[str]:
    """End each run, as by Ctrl-C, before or after the next checkpoint or result it writes, in turn."""
    written: list[str] = []

    def interrupting(name, original):
        def write(*arguments):
            written.append(name)
            if len(written) % 2:
                original(*arguments)
            raise KeyboardInterrupt

        return write

    monkeypatch.setattr(FineTuner, "_save_checkpoint", interrupting("epoch", FineTuner._save_checkpoint))
    monkeypatch.setattr("finetune.train.write_result", interrupting("result", write_result))
    return written


CASES = {
    "search and compare": ["--search", "2", "--compare", "--epochs", "1", "--seeds", "1"],
    "adapters and patience": ["--lora", "2", "--patience", "1", "--seeds", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_interrupted_at_everything_it_writes(case, toy, tmp_path, monkeypatch, capsys):
    assert run(*command(toy, tmp_path / "whole", *CASES[case])) == 0
    arguments = command(toy, tmp_path / "out", *CASES[case], "--resume")
    with monkeypatch.context() as patch:
        written = interrupt_at_every_write(patch)
        while run(*arguments) == 130:
            assert len(written) < 60
    assert set(written) == {"epoch", "result"}
    capsys.readouterr()
    assert_same_run(tmp_path / "out", tmp_path / "whole")
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert run(*arguments) == 0
    assert capsys.readouterr().err == f"{tmp_path / 'out'}: finished before\n"
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before


def test_a_killed_checkpoint_does_not_count(toy, tmp_path, monkeypatch):
    """Trainer writes a checkpoint file by file, and deletes the one before it."""
    flags = ["--seeds", "1", "--epochs", "3"]
    assert run(*command(toy, tmp_path / "whole", *flags)) == 0
    arguments = command(toy, tmp_path / "out", *flags)

    def killed(self, output_dir):
        if self.state.epoch > 1:
            raise KeyboardInterrupt
        return save_rng(self, output_dir)

    save_rng = FineTuner._save_rng_state
    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "_save_rng_state", killed)
        assert run(*arguments) == 130
    seed = tmp_path / "out.unfinished" / "seeds" / "1"
    assert len(list(seed.glob("checkpoint-*"))) == 2, "one is half-written"
    assert run(*arguments, "--resume") == 0
    assert_same_run(tmp_path / "out", tmp_path / "whole")


def test_old_names_of_weights_survive_a_checkpoint(toy, tmp_path, monkeypatch):
    """LayerNorm.gamma of old checkpoints: saved under that name again, Trainer would not find it when it resumes."""
    model = BertForMaskedLM(bert_config())
    with torch.no_grad():
        model.bert.encoder.layer[0].output.LayerNorm.weight.fill_(0.3)
    state = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v.clone() for k, v in model.state_dict().items()}
    save(model, wordpiece(), tmp_path / "old")
    from safetensors.torch import save_file

    save_file(
        {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in state.items() if "decoder" not in k},
        tmp_path / "old" / "model.safetensors",
        metadata={"format": "pt"},
    )
    arguments = [*command(toy, tmp_path / "whole", "--seeds", "1", "--epochs", "2"), "--model", tmp_path / "old"]
    assert run(*arguments) == 0
    arguments[arguments.index("--output") + 1] = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupt_at_every_write(patch)
        assert run(*arguments) == 130
    assert run(*arguments, "--resume") == 0
    assert_same_run(tmp_path / "out", tmp_path / "whole")


@pytest.fixture(scope="module")
def interrupted(toy, tmp_path_factory) -> Path:
    """A folder with glue/, stock/, the run whole/, and the same one as out.unfinished, stopped by SIGTERM in seed 2."""
    folder = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(toy / "stock", folder / "stock")
    shutil.copytree(toy / "glue", folder / "glue")
    assert run(*command(folder, folder / "whole")) == 0
    with pytest.MonkeyPatch.context() as patch:
        save_checkpoint, count = FineTuner._save_checkpoint, []

        def terminated(*arguments):
            save_checkpoint(*arguments)
            count.append(1)
            if len(count) == 6:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)

        patch.setattr(FineTuner, "_save_checkpoint", terminated)
        assert run(*command(folder, folder / "out")) == 143
    return folder


@pytest.fixture
def work(interrupted, tmp_path) -> Path:
    """A copy to break."""
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    return tmp_path


def assert_refused(arguments: list, capsys, *fragments: str) -> None:
    capsys.readouterr()
    assert run(*arguments) == 2
    *before, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and not any("Traceback" in line for line in before), error
    assert all(fragment in error for fragment in fragments), error


def test_a_moved_run_resumes_with_the_same_best_weights(toy, tmp_path, monkeypatch):
    """Trainer stores the absolute path of the best checkpoint, and ignores a path that does not exist."""
    assert run(*command(toy, tmp_path / "whole", "--seeds", "1")) == 0
    assert results_of(tmp_path / "whole")["seeds"][0]["best_epoch"] < 4, "the test needs it"
    with monkeypatch.context() as patch:
        patch.setattr("finetune.train.write_result", interrupt)
        assert run(*command(toy, tmp_path / "before" / "out", "--seeds", "1")) == 130
    (tmp_path / "before").rename(tmp_path / "after")
    assert run(*command(toy, tmp_path / "after" / "out", "--seeds", "1", "--resume")) == 0
    assert_same_run(tmp_path / "after" / "out", tmp_path / "whole")


def test_sigterm_says_what_is_kept(toy, tmp_path, monkeypatch, capsys):
    kill = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr("finetune.train.train_seeds", kill)
    assert run(*command(toy, tmp_path / "out")) == 143
    assert capsys.readouterr().err == "error: SIGTERM: no epoch was finished\n" and list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_at_the_end_of_an_epoch_waits_for_its_checkpoint(toy, tmp_path, monkeypatch, capsys):
    """The epoch's line was printed: its work must not be lost."""
    write = Progress.write

    def write_and_signal(self, line):
        write(self, line)
        if "epoch 2/4" in line:
            os.kill(os.getpid(), signal.SIGINT)

    assert run(*command(toy, tmp_path / "whole", "--seeds", "1")) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "write", write_and_signal)
        assert run(*command(toy, tmp_path / "out", "--seeds", "1")) == 130
    assert "error: SIGINT: finished parts are in " in capsys.readouterr().err
    assert run(*command(toy, tmp_path / "out", "--seeds", "1", "--resume")) == 0
    assert "continues after epoch 2/4" in capsys.readouterr().err
    assert_same_run(tmp_path / "out", tmp_path / "whole")


def test_a_signal_while_the_result_is_written_is_no_error_of_the_card(toy, tmp_path, monkeypatch, capsys):
    flags = ["--seeds", "1", "--epochs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_card", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert run(*command(toy, tmp_path / "out", *flags)) == 143
    assert not (tmp_path / "out").exists()
    assert run(*command(toy, tmp_path / "out", *flags, "--resume")) == 0


def test_other_settings_data_or_weights_are_refused_by_name(work, capsys):
    arguments = command(work, work / "out", "--resume")
    assert_refused([*arguments, "--epochs", "5"], capsys, "run.json", "epochs 4", "now it is 5")
    assert_refused([*arguments, "--dropout", "0.2"], capsys, "run.json", "dropout 0.1")
    identity = work / "out.unfinished" / "run.json"
    original = json.loads(identity.read_text())
    changed = {name: value for name, value in original.items() if name != "sha256"} | {"number of processes": 2}
    atomic_write_json(identity, changed, checksum=True)
    assert_refused(arguments, capsys, "number of processes 2, now it is 1")
    identity.write_text(json.dumps(changed | {"sha256": original["sha256"]}))
    assert_refused(arguments, capsys, "run.json", "its checksum differs")
    identity.write_text(json.dumps(original))
    torch.manual_seed(1)
    shutil.rmtree(work / "stock")
    save(BertForMaskedLM(bert_config()), wordpiece(), work / "stock")
    assert_refused(arguments, capsys, "weights of --model")
    other = write_glue(work / "other", rows=401)
    assert_refused(command(work, work / "out", "--resume", glue=other), capsys, "texts and labels")
    dev = work / "glue" / "SST-2" / "dev.tsv"
    dev.write_text(dev.read_text().replace("plain0", "plain1"))
    assert_refused(arguments, capsys, "texts and labels", "sha256")
    assert_refused(command(work, work / "whole", "--resume"), capsys, "results.json", "texts and labels")
    assert not (work / "out").exists()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "rng_state.pth"])
def test_a_damaged_checkpoint_is_named_and_an_earlier_one_is_used(name, work, capsys):
    """The best weights, which are not always the last, are part of what a resume needs."""
    seed = work / "out.unfinished" / "seeds" / "2"
    last = max(seed.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    flip_a_bit(last / name)
    assert run(*command(work, work / "out", "--resume")) == 0
    assert f"{last}: {name} is damaged" in capsys.readouterr().err
    assert_same_run(work / "out", work / "whole")


@pytest.mark.parametrize("name", ["result.json", "model.safetensors"])
def test_a_damaged_result_is_named_and_trained_again(name, work, capsys):
    seed = work / "out.unfinished" / "seeds" / "1"
    flip_a_bit(seed / name)
    assert run(*command(work, work / "out", "--resume")) == 0
    assert str(seed / name) in (said := capsys.readouterr().err) and "trained again" in said
    assert_same_run(work / "out", work / "whole")


def test_a_damaged_output_is_not_taken_for_finished(work, capsys):
    flip_a_bit(work / "whole" / "results.json")
    assert_refused(command(work, work / "whole", "--resume"), capsys, "results.json is damaged")


@pytest.mark.parametrize("text", ["", "{}", '{"settings": {}}', "[1]"])
def test_a_damaged_run_file_is_named(text, work, capsys):
    (work / "out.unfinished" / "run.json").write_text(text)
    assert_refused(command(work, work / "out", "--resume"), capsys, "run.json", "delete")


def test_killed_between_the_output_and_the_removal(work, monkeypatch):
    publish = run_module.Run.publish
    monkeypatch.setattr(run_module.Run, "publish", lambda *arguments: interrupt(publish(*arguments)))
    assert run(*command(work, work / "out", "--resume")) == 130
    first = (work / "out" / "model.safetensors").read_bytes()
    monkeypatch.undo()
    assert run(*command(work, work / "out", "--resume")) == 0
    assert (work / "out" / "model.safetensors").read_bytes() == first and not (work / "out.unfinished").exists()
    assert_same_run(work / "out", work / "whole")


def test_a_full_disk_ends_in_one_line_and_loses_nothing(toy, tmp_path, monkeypatch, capsys):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    arguments = command(toy, tmp_path / "out", "--epochs", "1", "--seeds", "1")
    for target in ("finetune.trainer.save_model", "finetune.run.Run.write_predictions"):
        with monkeypatch.context() as patch:
            patch.setattr(target, full)
            assert_refused([*arguments, "--resume"], capsys, "No space left on device")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.unfinished"]
    assert run(*arguments, "--resume") == 0
    assert capsys.readouterr().err == "finished before: seed 1\n", "nothing is trained again"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_the_order_of_an_epoch_depends_on_seed_and_number_alone():
    order, epochs = LengthGroupedOrder([3 + i % 7 for i in range(100)], 8, seed=1), []
    for epoch in range(3):
        torch.rand(epoch)  # another state of the global generator
        order.set_epoch(epoch)
        epochs.append(list(order))
        assert sorted(epochs[-1]) == list(range(100))
    again = LengthGroupedOrder([3 + i % 7 for i in range(100)], 8, seed=1)
    again.set_epoch(2)
    assert list(again) == epochs[2] and epochs[0] != epochs[1] != epochs[2]
