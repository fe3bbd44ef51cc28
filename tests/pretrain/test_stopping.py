"""Protects interrupted and diverging runs: SIGTERM, NaN losses, and which checkpoints remain."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from pretraining import ENVIRONMENT, SHARED, command, finish, losses, pretrain, refused, run, same_weights, start

from hf_tiny_transformer.common.errors import EXIT_DIVERGED
from pretrain import loop as training_loop
from pretrain.checkpoint import checkpoint_steps
from pretrain.metrics import read_metrics

FLAGS = ("--max-steps=80", "--save-steps=20")


@pytest.fixture(scope="module")
def whole(corpus_file, tmp_path_factory):
    return pretrain(corpus_file, tmp_path_factory.mktemp("whole") / "run", *FLAGS)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bytes(sent, whole, corpus_file, tmp_path):
    output = tmp_path / "stopped"
    arguments = [sys.executable, "-m", "pretrain", *command(corpus_file, output, *FLAGS)]
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = output / "training" / "metrics.jsonl"
    deadline = time.time() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.005)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=60)
    if sent != signal.SIGKILL:
        assert process.returncode == 128 + sent
        (step,) = (s for s in checkpoint_steps(output) if s % 20)
        assert f"error: {sent.name}: saved at step {step} of 80; continue with --resume" in errors
    assert not (output / "config.json").exists()
    pretrain(corpus_file, output, *FLAGS, "--resume")
    assert same_weights(whole, output)


def test_a_loss_that_explodes_ends_the_run_and_leaves_the_last_checkpoint(corpus_file, tmp_path, capsys):
    rates = ("--optimizer=adamw", "--learning_rate=1e6", "--warmup=0.5")
    output = tmp_path / "out"
    arguments = command(corpus_file, output, "--max-steps=40", "--save-steps=1", *rates)
    assert run(arguments) == EXIT_DIVERGED
    message = capsys.readouterr().err
    assert "error: step " in message and "on blocks" in message and "--skip-bad-steps 1" in message
    assert "Traceback" not in message
    assert not (output / "config.json").exists()
    last = checkpoint_steps(output)[-1]
    assert f"step {last + 1}:" in message, "the step before it is saved, the bad one is not"
    state = torch.load(output / f"checkpoints/step-{last}/training_state.pt", weights_only=True)
    assert state["optimizers"]


def damage(path, kind):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if kind == "flipped" else content[: len(content) // 2])


@pytest.mark.parametrize("kind", ["flipped", "shortened"])
@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt", "training_state.json", "metrics.jsonl"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_resumed(
    name, kind, trained, corpus_file, tmp_path, caplog
):
    """The weights and the metrics of the resumed run are those of the whole one."""
    output = tmp_path / "run"
    shutil.copytree(trained, output)
    damage(output / "checkpoints/step-12" / name, kind)
    (output / "training" / "metrics.jsonl").write_text("{}\n")  # each checkpoint has a copy
    caplog.set_level("INFO")
    assert run(["--output", str(output), "--resume", "--corpus", str(corpus_file)]) == 0
    assert f"step-12: {name} is damaged" in caplog.text and "resuming from" in caplog.text and "step-8" in caplog.text
    assert same_weights(output, trained) and losses(output) == losses(trained)
    assert (output / "checkpoints/step-12.damaged").is_dir()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("run.json", '"seed": 1', '"seed": 3'), ("recipe.yaml", "weight_decay: 0.01", "weight_decay: 0.03")],
)
def test_a_damaged_record_is_refused(file, old, new, trained, corpus_file, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "training" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    words = refused(capsys, ["--output", str(tmp_path / "run"), "--resume", "--corpus", str(corpus_file)])
    assert file in words and "damaged" in words


def test_damaged_packed_tokens_are_made_again(corpus_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TINY_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    first = pretrain(corpus_file, tmp_path / "first", "--max-steps=3")
    (tokens,) = (tmp_path / "cache" / "corpora").glob("*/train.bin")
    before = tokens.read_bytes()
    damage(tokens, "shortened")
    assert same_weights(first, pretrain(corpus_file, tmp_path / "second", "--max-steps=3"))
    assert f"{tokens.parent}: train.bin is damaged" in capsys.readouterr().err and tokens.read_bytes() == before


class Poisoned:
    """Multiplies the loss of one forward pass by a factor, or of all with `call=None`."""

    def __init__(self, monkeypatch, factor, call):
        self.forward, self.factor, self.call, self.calls = training_loop.forward, factor, call, 0
        monkeypatch.setattr(training_loop, "forward", self)

    def __call__(self, model, batch, totals):
        self.calls += 1
        outputs = self.forward(model, batch, totals)
        outputs["loss"] = outputs.loss * (self.factor if self.call in (None, self.calls) else 1.0)
        return outputs


@pytest.mark.parametrize("factor", [float("nan"), 1000.0])
def test_a_bad_step_is_skipped_where_that_is_allowed(factor, corpus_file, tmp_path, monkeypatch, capsys):
    """Weights after a skipped step are those before it; the count survives a resume."""
    flags = ["--max-steps=8", "--save-steps=1", "--micro_batch_size=8", "--optimizer=adamw"]
    poisoned = Poisoned(monkeypatch, factor, 5)
    assert run(command(corpus_file, tmp_path / "stops", *flags)) == EXIT_DIVERGED
    assert "step 5: loss " in capsys.readouterr().err
    poisoned.calls = 0
    output = pretrain(corpus_file, tmp_path / "continues", *flags, "--skip-bad-steps=1")
    assert same_weights(output / "checkpoints/step-4", output / "checkpoints/step-5")
    assert not same_weights(output / "checkpoints/step-5", output / "checkpoints/step-6")
    assert json.loads((output / "checkpoints/step-8/training_state.json").read_text())["skipped"] == 1
    assert json.loads((output / "checkpoints/step-4/training_state.json").read_text())["skipped"] == 0


def test_gradients_of_zero_end_the_run(corpus_file, tmp_path, monkeypatch, capsys):
    """A compiler that loses the gradients must not train silently; nothing is published."""
    Poisoned(monkeypatch, 0.0, call=None)
    assert run(command(corpus_file, tmp_path / "run", "--max-steps=8", "--optimizer=adamw")) == EXIT_DIVERGED
    assert "step 5: all gradients were zero in 5 steps" in capsys.readouterr().err
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.slow
def test_all_processes_skip_a_step_that_is_bad_in_one(corpus_file, tmp_path):
    """Only the second process has a NaN loss; both skip the step, and neither waits for the other."""
    program = tmp_path / "poisoned.py"
    program.write_text(
        "import os, runpy\n"
        "from pretrain import loop\n"
        "forward, calls = loop.forward, []\n"
        "def poisoned(model, *arguments):\n"
        "    calls.extend([0] * model.training)\n"
        "    outputs = forward(model, *arguments)\n"
        "    if model.training and len(calls) == 10 and os.environ['RANK'] == '1':\n"
        "        outputs['loss'] = outputs.loss * float('nan')\n"
        "    return outputs\n"
        "loop.forward = poisoned\n"
        "runpy.run_module('pretrain', run_name='__main__')\n"
    )
    flags = (*SHARED, "--max-steps=8", "--save-steps=1", "--skip-bad-steps=1")
    text = finish(start("cpu-2.yaml", corpus_file, tmp_path / "run", *flags, program=[str(program)]))
    (step,) = map(int, re.findall(r"skipped step (\d+): loss nan", text))
    before, bad, after = (tmp_path / f"run/checkpoints/step-{step + i}" for i in (-1, 0, 1))
    assert same_weights(before, bad) and not same_weights(bad, after)


def validation_losses(output):
    lines = read_metrics(output / "training/metrics.jsonl")
    return {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}


def test_only_the_last_checkpoints_stay_and_the_best(corpus_file, tmp_path):
    """Validation comes every 3 steps, so the best may be one that no save fell on."""
    output = pretrain(corpus_file, tmp_path / "run", "--max-steps=30", "--save-steps=5", "--keep-last=2")
    losses = validation_losses(output)
    assert set(checkpoint_steps(output)) - {min(losses, key=losses.__getitem__)} <= {0, 25, 30}
    assert {0, 25, 30} <= set(checkpoint_steps(output))


def test_the_best_on_validation_is_published(corpus_file, tmp_path):
    """A rate that rises until it ruins the model: the best step is not the last."""
    flags = ("--optimizer=adamw", "--learning_rate=0.8", "--warmup=1.0", "--decay=0.0", "--save-best", "--keep-last=1")
    output = pretrain(corpus_file, tmp_path / "run", "--max-steps=40", *flags)
    losses = validation_losses(output)
    best = min(losses, key=losses.__getitem__)
    assert 0 < best < 40
    assert checkpoint_steps(output) == [0, best, 40]
    assert same_weights(output, output / "checkpoints" / f"step-{best}")
    summary = json.loads((output / "training/summary.json").read_text())
    assert (summary["steps"], summary["validation_loss"]) == (best, losses[best])


def test_saving_by_minutes(corpus_file, tmp_path):
    output = pretrain(corpus_file, tmp_path / "run", "--max-steps=4", "--save-minutes=0.00001")
    assert checkpoint_steps(output) == list(range(5)), "each step takes longer than that"
    output = pretrain(corpus_file, tmp_path / "rare", "--max-steps=4", "--save-minutes=60")
    assert checkpoint_steps(output) == [0, 4]


def test_figures_go_to_a_tracker_too(corpus_file, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = pretrain(corpus_file, tmp_path / "run", "--max-steps=6", "--log-with=tensorboard")
    (events,) = (output / "training").rglob("events.out.tfevents.*")
    reader = EventAccumulator(str(events.parent))
    reader.Reload()
    logged = [(event.step, event.value) for event in reader.Scalars("loss")]
    lines = read_metrics(output / "training/metrics.jsonl")
    assert [step for step, _ in logged] == [line["step"] for line in lines]
    assert [value for _, value in logged] == pytest.approx([line["loss"] for line in lines])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--keep-last=0"], "--keep-last 0: must be positive"),
        (["--save-minutes=1", "--save-steps=3"], "exclude each other"),
        (["--skip-bad-steps=-1"], "--skip-bad-steps -1: must not be negative"),
        (["--log-with=paper"], "log-with"),
        (["--log-with=trackio"], "--log-with trackio"),
    ],
)
def test_wrong_settings_are_refused(flags, words, corpus_file, tmp_path, capsys):
    assert words in refused(capsys, command(corpus_file, tmp_path / "out", *flags))
    assert not (tmp_path / "out").exists()
