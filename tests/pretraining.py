"""Tiny pretraining runs: their flags, commands in this process and under a launcher, and comparisons of results."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from hf_tiny_transformer.common.errors import run_command
from pretrain.cli import main
from pretrain.data.packed import join_shards, write_shards
from pretrain.data.tokenizer import train_tokenizer
from pretrain.metrics import read_metrics

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "--vocab_size=120",
    "--model.hidden_size=32",
    "--model.num_attention_heads=2",
    "--model.intermediate_size=48",
    '--stages=[{"share": 0.5, "block_size": 16, "batch_size": 8, "mask_rate": 0.3, "matrix_learning_rate": 0.03},'
    ' {"share": 0.5, "block_size": 32, "batch_size": 4, "mask_rate": 0.2}]',
    "--micro_batch_size=4",
    "--validation_share=0.1",
    "--validation_blocks=8",
    '--examples=["the music is [MASK] ."]',
]
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
SHARED = ("--optimizer=adamw", "--micro_batch_size=2", "--save-steps=5")  # of runs on several processes
LAUNCH = ROOT / "pretrain" / "launch"


def without(flags, *names):
    """Return the flags except those named."""
    return [flag for flag in flags if not flag.startswith(names)]


def command(corpus, output, *flags):
    """Return the arguments of a tiny run."""
    return ["--corpus", str(corpus), "--output", str(output), *TINY, *flags]


def run(arguments):
    """Return the exit status of `python -m pretrain`."""
    return run_command(lambda: main([str(argument) for argument in arguments]))


def pretrain(corpus, output, *flags):
    """Train a tiny model and return its directory."""
    assert run(command(corpus, output, *flags)) == 0
    return Path(output)


def refused(capsys, arguments):
    """Return the one line of an error with exit status 2."""
    capsys.readouterr()
    assert run(arguments) == 2
    message = capsys.readouterr().err
    assert [line.startswith("error: ") for line in message.splitlines()].count(True) == 1
    assert "Traceback" not in message
    return message


def start(config, corpus, output, *flags, program=("-m", "pretrain"), launch=(), **environment):
    """Start a tiny run under `accelerate launch`, with all that it prints in one stream."""
    arguments = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(LAUNCH / config), *launch]
    arguments += [*program, *command(corpus, output, *flags)]
    everything = {**os.environ, **ENVIRONMENT, **environment}
    return subprocess.Popen(arguments, env=everything, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, seconds=240):
    """Return what a run printed that must succeed."""
    text, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, text
    return text


def weights(directory):
    """Return the tensors of a model directory."""
    return load_file(Path(directory) / "model.safetensors")


def same_weights(first, second):
    """Return whether two model directories have the same weights, bit by bit."""
    first, second = weights(first), weights(second)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses(directory):
    """Return the losses of a run's steps."""
    return [line["loss"] for line in read_metrics(Path(directory) / "training/metrics.jsonl")]


def make_tokenizer(documents, family="encoder", vocab_size=120):
    """Train a tiny tokenizer."""
    return train_tokenizer(
        lambda: documents, vocab_size=vocab_size, lowercase=True, max_length=64, family=family, progress=False
    )


def pack(documents, tokenizer, directory):
    """Pack documents into a training split and return its file."""
    write_shards(documents, np.zeros(len(documents), dtype=np.uint8), tokenizer, directory / "shards")
    join_shards([directory / "shards"], directory, len(tokenizer))
    return directory / "train.bin"
