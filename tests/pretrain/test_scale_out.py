"""Protects runs on several processes: the same numbers as on one, sharded or not, on one host or two, and their end."""

import os
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch
from pretraining import ROOT, SHARED, finish, losses, pretrain, start, weights
from transformers import AutoModelForMaskedLM

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_two_processes_equal_one(alone, corpus_file, tmp_path):
    """The same global batch, divided: losses agree to rounding, and either can go on where the other stopped."""
    text = finish(start("cpu-2.yaml", corpus_file, tmp_path / "two", *SHARED, "--max-steps=40"))
    assert "2 x cpu" in text
    assert losses(tmp_path / "two") == pytest.approx(losses(alone), abs=1e-5)
    for run, resume_on in ((alone, "cpu-2.yaml"), (tmp_path / "two", None)):
        half = tmp_path / f"half-of-{run.name}"
        shutil.copytree(run, half)
        for step in (30, 40):
            shutil.rmtree(half / "checkpoints" / f"step-{step}")
        if resume_on:
            finish(start(resume_on, corpus_file, half, *SHARED, "--resume"))
        else:
            pretrain(corpus_file, half, "--resume", *SHARED)
        assert losses(half) == pytest.approx(losses(alone), abs=1e-5)


def test_a_run_goes_on_on_four_processes(alone, corpus_file, tmp_path):
    """Rows are dealt out anew; four rows a step in the second stage, one a process."""
    half = tmp_path / "half"
    shutil.copytree(alone, half)
    for step in (20, 30, 40):
        shutil.rmtree(half / "checkpoints" / f"step-{step}")
    finish(start("cpu-2.yaml", corpus_file, half, *SHARED, "--resume", launch=["--num_processes", "4"]))
    assert losses(half) == pytest.approx(losses(alone), abs=1e-5)


def test_sharded_weights_train_the_same_and_are_saved_whole(alone, corpus_file, tmp_path):
    """FSDP2: one safetensors that loads anywhere; resumed sharded, and on one process."""
    sharded = [str(ROOT / "tests" / "pretrain" / "fsdp_on_cpu.py")]
    text = finish(start("fsdp2.yaml", corpus_file, tmp_path / "run", *SHARED, "--max-steps=40", program=sharded))
    assert "2 x cpu, FSDP" in text
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)
    whole, expected = (weights(run) for run in (tmp_path / "run", alone))
    assert whole.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(whole[name], tensor, atol=1e-4, rtol=1e-4)
    _, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not any(loading.values())
    for name, again in (("sharded", True), ("alone", False)):
        half = tmp_path / name
        shutil.copytree(tmp_path / "run", half)
        shutil.rmtree(half / "checkpoints" / "step-40")
        if again:
            finish(start("fsdp2.yaml", corpus_file, half, *SHARED, "--resume", program=sharded))
        else:
            pretrain(corpus_file, half, "--resume", *SHARED)
        assert losses(half) == pytest.approx(losses(alone), abs=1e-5)


def test_weights_kept_whole_within_a_step_train_the_same(alone, corpus_file, tmp_path):
    """ZeRO's second stage by FSDP2."""
    sharded = [str(ROOT / "tests" / "pretrain" / "fsdp_on_cpu.py")]
    text = finish(start("zero2.yaml", corpus_file, tmp_path / "run", *SHARED, "--max-steps=40", program=sharded))
    assert "2 x cpu, FSDP" in text
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)


def test_two_hosts_equal_one(alone, corpus_file, tmp_path):
    """Both on loopback: one process each, a rendezvous between them."""
    port = free_port()
    hosts = [
        start(
            "hosts.yaml",
            corpus_file,
            tmp_path / "run",
            *SHARED,
            "--max-steps=40",
            launch=["--machine_rank", str(rank), "--main_process_port", port],
        )
        for rank in range(2)
    ]
    for host in hosts:
        finish(host)
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)


def children(process):
    """Process ids of a launcher's workers."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in listed]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers through /proc")
def test_a_killed_process_ends_the_others_and_resume_goes_on(corpus_file, tmp_path):
    flags = ("--max-steps=4000", "--save-steps=20")
    process = start("cpu-2.yaml", corpus_file, tmp_path / "run", *SHARED, *flags)
    deadline = time.time() + 120
    while not (tmp_path / "run" / "checkpoints" / "step-20").is_dir():
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.05)
    victim = children(process)[-1]
    os.kill(victim, 9)
    killed_at = time.time()
    text, _ = process.communicate(timeout=60)
    assert time.time() - killed_at < 60
    assert process.returncode != 0
    assert "exitcode  : -9" in text and "Signal 9 (SIGKILL)" in text, "the launcher says which one ended, and how"
    assert not (tmp_path / "run" / "config.json").exists()
    process = start("cpu-2.yaml", corpus_file, tmp_path / "run", *SHARED, "--save-steps=20", "--resume")
    deadline = time.time() + 120
    seen = len(list((tmp_path / "run" / "checkpoints").iterdir()))
    while len(list((tmp_path / "run" / "checkpoints").iterdir())) <= seen:
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.05)
    process.terminate()
    process.communicate(timeout=60)
