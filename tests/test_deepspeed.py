"""Protects runs under DeepSpeed's ZeRO-2: the same numbers and checkpoints as everywhere else, and clear refusals."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
from test_pretrain import ROOT, assert_same_weights, command, pretrain, refused
from test_scale_out import ENVIRONMENT, FLAGS, finish, losses, start

ZERO = [str(ROOT / "tests" / "deepspeed_on_cpu.py")]
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


@pytest.fixture(scope="module")
def alone(corpus_file, tmp_path_factory):
    """50 steps on one process, without it."""
    return pretrain(corpus_file, tmp_path_factory.mktemp("runs") / "one", "--max-steps=50", *FLAGS)


@needs_deepspeed
def test_deepspeed_trains_the_same_and_its_checkpoints_are_everyones(alone, corpus_file, tmp_path):
    """ZeRO-2 by DeepSpeed, with two micro-batches a step: resumed by itself, by one process, and where one stopped."""
    text = finish(start("deepspeed.yaml", corpus_file, tmp_path / "run", "--max-steps=50", program=ZERO))
    assert "2 x cpu, DEEPSPEED" in text
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)
    for name, source, by_deepspeed in (
        ("own", tmp_path / "run", True),
        ("left", tmp_path / "run", False),
        ("found", alone, True),
    ):
        half = tmp_path / name
        shutil.copytree(source, half)
        for step in (40, 50):
            shutil.rmtree(half / "checkpoints" / f"step-{step}")
        if by_deepspeed:
            finish(start("deepspeed.yaml", corpus_file, half, "--resume", program=ZERO))
        else:
            pretrain(corpus_file, half, "--resume", *FLAGS)
        assert losses(half) == pytest.approx(losses(alone), abs=1e-5)
    assert_same_weights(tmp_path / "own", tmp_path / "run")


@needs_deepspeed
@pytest.mark.parametrize("factor", ["nan", "1000"])
def test_deepspeed_passes_over_a_bad_step(factor, corpus_file, tmp_path):
    """Its engine steps within the backward pass: no number and an exploded one both have to be seen before."""
    program = tmp_path / "poisoned.py"
    program.write_text(
        "import runpy, sys\n"
        "from pretrain import loop\n"
        "share, calls = loop.loss_share, []\n"
        "def poisoned(*arguments):\n"
        "    calls.append(0)\n"
        f"    return share(*arguments) * (float('{factor}') if len(calls) == 10 else 1.0)\n"
        "loop.loss_share = poisoned\n"
        f"runpy.run_path({ZERO[0]!r}, run_name='__main__')\n"
    )
    flags = ("--max-steps=8", "--save-steps=1", "--skip-bad-steps=1")
    text = finish(start("deepspeed.yaml", corpus_file, tmp_path / "run", *flags, program=[str(program)]))
    assert text.count("passed over step") == 1
    (step,) = re.findall(r"passed over step (\d+): loss", text)
    saved = [tmp_path / "run" / "checkpoints" / f"step-{int(step) + i}" for i in (-1, 0, 1)]
    assert_same_weights(saved[0], saved[1])
    with pytest.raises(AssertionError):
        assert_same_weights(saved[1], saved[2])


@needs_deepspeed
@pytest.mark.parametrize(
    ("launch", "flags", "words"),
    [
        ([], ["--optimizer=muon"], "--optimizer adamw"),
        (["--zero_stage", "3"], [], "zero_stage: 3: use 2"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused_in_one_line(launch, flags, words, corpus_file, tmp_path):
    process = start("deepspeed.yaml", corpus_file, tmp_path / "run", *flags, program=ZERO, launch=launch)
    text, _ = process.communicate(timeout=120)
    (line,) = [line for line in text.splitlines() if "error: DeepSpeed" in line]
    assert words in line
    assert not (tmp_path / "run").exists()


@needs_deepspeed
def test_where_it_is_installed_but_not_used_nothing_of_it_is_printed(corpus_file, tmp_path):
    """Accelerate imports it all the same, and stdout is for results."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("DS_ACCELERATOR", None)
    arguments = [sys.executable, "-m", "pretrain", *command(corpus_file, tmp_path / "run", "--max-steps=2")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert "accelerator" not in done.stdout + done.stderr


def test_finetuning_says_that_it_does_not_use_deepspeed(tmp_path):
    environment = {**os.environ, **ENVIRONMENT, "ACCELERATE_USE_DEEPSPEED": "true"}
    flags = ["--output", str(tmp_path / "run"), "--model", "M", "--task", "sst2"]
    ended = subprocess.run([sys.executable, "-m", "finetune", *flags], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: DeepSpeed") and "ddp.yaml" in line
    assert not (tmp_path / "run").exists()


def test_deepspeed_that_is_not_installed_is_said_in_one_line(corpus_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("accelerate.accelerator.is_deepspeed_available", lambda: False)
    message = refused(capsys, command(corpus_file, tmp_path / "run", "--max-steps=2"))
    assert "pip install deepspeed" in message
    assert not (tmp_path / "run").exists()
