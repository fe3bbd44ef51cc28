"""Protects runs on several processes: the same numbers as on one, sharded or not, on one host or two, and their end."""

import os
import re
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


def half_of(run, output, first_dropped=20):
    """Copy a run as if it had stopped before its checkpoint of a step."""
    shutil.copytree(run, output)
    for directory in (output / "checkpoints").iterdir():
        if int(directory.name.removeprefix("step-")) >= first_dropped:
            shutil.rmtree(directory)
    return output


def test_two_processes_equal_one(alone, corpus_file, tmp_path):
    """The same global batch, divided: losses agree to rounding, and one process continues where two stopped."""
    text = finish(start("cpu-2.yaml", corpus_file, tmp_path / "two", *SHARED, "--max-steps=20"))
    assert "2 x cpu" in text
    assert losses(tmp_path / "two") == pytest.approx(losses(alone), abs=1e-5)
    half = half_of(tmp_path / "two", tmp_path / "half")
    pretrain(corpus_file, half, "--resume", *SHARED)
    assert losses(half) == pytest.approx(losses(alone), abs=1e-5)


def test_a_compiled_model_reduces_gradients_once_per_step(alone, corpus_file, tmp_path):
    """The first ten steps have two micro-batches per process, so 30 reductions would be a `no_sync` without effect."""
    program = [str(ROOT / "tests" / "pretrain" / "compiled_on_cpu.py")]
    text = finish(start("cpu-2.yaml", corpus_file, tmp_path / "run", *SHARED, "--max-steps=20", program=program))
    assert "2 x cpu, MULTI_CPU, fp32, sdpa, compiled" in text
    (graphs, reduced), *_ = re.findall(r"(\d+) graphs, gradients reduced (\d+) times", text)
    assert int(graphs) > 0 and reduced == "20"
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)


def test_a_run_goes_on_on_four_processes(alone, corpus_file, tmp_path):
    """Rows are distributed again; the second stage has four rows per step, one per process."""
    half = half_of(alone, tmp_path / "half", first_dropped=10)
    finish(start("cpu-2.yaml", corpus_file, half, *SHARED, "--resume", launch=["--num_processes", "4"]))
    assert losses(half) == pytest.approx(losses(alone), abs=1e-5)


def test_sharded_weights_train_the_same_and_are_saved_whole(alone, corpus_file, tmp_path):
    """FSDP2: one safetensors that loads anywhere; resumed on one process, and sharded as in ZeRO's second stage."""
    sharded = [str(ROOT / "tests" / "pretrain" / "fsdp_on_cpu.py")]
    text = finish(start("fsdp2.yaml", corpus_file, tmp_path / "run", *SHARED, "--max-steps=20", program=sharded))
    assert "2 x cpu, FSDP" in text
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-5)
    whole, expected = (weights(run) for run in (tmp_path / "run", alone))
    assert whole.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(whole[name], tensor, atol=1e-4, rtol=1e-4)
    _, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "run", output_loading_info=True)
    assert not any(loading.values())
    on_one, zero2 = (half_of(tmp_path / "run", tmp_path / name, first_dropped=10) for name in ("one", "zero2"))
    pretrain(corpus_file, on_one, "--resume", *SHARED)
    assert "2 x cpu, FSDP" in finish(start("zero2.yaml", corpus_file, zero2, *SHARED, "--resume", program=sharded))
    for half in (on_one, zero2):
        assert losses(half) == pytest.approx(losses(alone), abs=1e-5)


def test_muon_trains_sharded_weights_like_whole_ones(corpus_file, tmp_path):
    """Sums over processes differ in the last bits of fp32. Muon orthogonalises in bf16, where such a difference may
    change a rounded value by 2**-8: losses drift apart by about 1e-3 in 20 steps, in which they fall by 0.8.
    """
    sharded, flags = [str(ROOT / "tests" / "pretrain" / "fsdp_on_cpu.py")], (*SHARED[1:], "--optimizer=muon")
    one = pretrain(corpus_file, tmp_path / "one", *flags, "--max-steps=20")
    text = finish(start("fsdp2.yaml", corpus_file, tmp_path / "run", *flags, "--max-steps=20", program=sharded))
    assert "2 x cpu, FSDP" in text
    assert losses(tmp_path / "run")[:2] == pytest.approx(losses(one)[:2], abs=1e-4), "before and after one update"
    half = half_of(tmp_path / "run", tmp_path / "half", first_dropped=10)
    pretrain(corpus_file, half, *flags, "--resume")
    for run in (tmp_path / "run", half):
        assert losses(run) == pytest.approx(losses(one), abs=5e-3)


def test_two_hosts_equal_one(alone, corpus_file, tmp_path):
    """Both on loopback: one process each, a rendezvous between them."""
    port = free_port()
    hosts = [
        start(
            "hosts.yaml",
            corpus_file,
            tmp_path / "run",
            *SHARED,
            "--max-steps=20",
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
def test_a_killed_process_ends_the_others(corpus_file, tmp_path):
    process = start("cpu-2.yaml", corpus_file, tmp_path / "run", *SHARED, "--max-steps=4000")
    deadline = time.time() + 120
    while not (tmp_path / "run" / "checkpoints" / "step-5").is_dir():
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.05)
    victim = children(process)[-1]
    os.kill(victim, 9)
    killed_at = time.time()
    text, _ = process.communicate(timeout=60)
    assert time.time() - killed_at < 60
    assert process.returncode != 0
    assert "exitcode  : -9" in text and "Signal 9 (SIGKILL)" in text, "the launcher names the process and its signal"
    assert not (tmp_path / "run" / "config.json").exists()
