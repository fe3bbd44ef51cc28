"""Protects the wheel: in a new environment and an empty folder, all commands run or name the package to install.

`make wheel` builds the wheel and runs this file, without pytest: python tests/wheel.py WHEEL [ENVIRONMENT]. ENVIRONMENT
is where the new environment stays; default: a temporary folder. The output is a transcript.
"""

import csv
import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
COMMANDS = ("pretrain", "finetune", "predict", "blimp", "report", "attend", "export", "import", "verify", "push")
DISTRIBUTIONS = "import importlib.metadata as m; print(*sorted(d.name.lower() for d in m.distributions()))"
BARE = """
import sys, torch, hf_tiny_transformer
from transformers import AutoConfig, AutoModelForMaskedLM
config = AutoConfig.for_model("tiny_transformer_encoder", vocab_size=99, hidden_size=32, num_attention_heads=2)
print(AutoModelForMaskedLM.from_config(config)(input_ids=torch.tensor([[5, 6, 7]])).logits.shape)
assert not {"jsonargparse", "docstring_parser", "datasets", "accelerate", "sklearn"} & set(sys.modules)
"""
LOAD = """
import hf_tiny_transformer
from transformers import pipeline
print(pipeline("text-classification", model="stars")("a warm film number 3 ."))
"""
LAUNCH = "launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
VARIABLES = {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1", "PIP_QUIET": "1"}


def run(*words: object, fails: bool = False) -> str:
    """Run a command in the working directory, print it and its output, and return the output."""
    command = [str(word) for word in words]
    shown = [Path(command[0]).name, *("..." if "\n" in word else word for word in command[1:])]
    print(f"$ {shlex.join(shown)}", flush=True)
    done = subprocess.run(command, env=os.environ | VARIABLES, stdout=-1, stderr=-2, text=True, stdin=-3, check=False)
    printed = "\n".join(line.rpartition("\r")[2] for line in done.stdout.strip().split("\n"))
    print(printed, flush=True)
    assert (done.returncode != 0) == fails, f"exit status {done.returncode}"
    assert "Traceback" not in printed
    return printed


def check_bare(bin: Path) -> None:
    """Without extras: models work, and each command names the extra that it requires."""
    run(bin / "python", "-c", BARE)
    assert "pretrain " in run(bin / "hf-tiny-transformer", "--help")
    for command in COMMANDS:
        extra = "export" if command == "export" else "train"
        printed = run(bin / "hf-tiny-transformer", command, "--help", fails=True)
        assert printed.endswith(f"run: pip install 'hf-tiny-transformer[{extra}]'") and "\n" not in printed
    for package in ("pretrain", "finetune"):
        assert "hf-tiny-transformer[train]" in run(bin / "python", "-m", package, "--help", fails=True)


def check_train(bin: Path, folder: Path) -> None:
    """With the extra `train`: from a text file to published scores."""
    command, words = bin / "hf-tiny-transformer", ("warm", "cold", "long", "funny")
    names = [
        "".join(parts)
        for parts in itertools.product("bdfgklmnprst", "aeiou", "bdfgklmnprst", "aeiou", ("n", "s", "rt"))
    ]
    lines = [
        f"The {words[i % 4]} film of {one} and {other}."
        for i, (one, other) in enumerate(zip(names, names[::-1], strict=True))
    ]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    for name, numbers in (("films", range(200)), ("new", range(200, 220))):
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            rows = [[f"a {('warm', 'cold')[i % 2]} film number {i} .", ("good", "bad")[i % 2]] for i in numbers]
            csv.writer(stream).writerows([["body", "stars"], *rows])
    (folder / "pairs").mkdir()
    pair = {
        "sentence_good": "a warm film",
        "sentence_bad": "warm a film",
        "field": "syntax",
        "linguistics_term": "order",
    }
    (folder / "pairs" / "order.jsonl").write_text(json.dumps(pair | {"UID": "order"}) + "\n", encoding="utf-8")
    run(command, *shlex.split("pretrain --corpus text.txt --output base --max-steps 20"))
    run(
        command,
        *shlex.split("finetune --model base --task films.csv --text body --label stars --output stars --seeds 2"),
    )
    run(command, *shlex.split("predict --model stars --input new.csv --text body --output answers.jsonl"))
    assert len((folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 20
    run(command, *shlex.split("blimp --model base --data pairs --output blimp"))
    run(command, *shlex.split("report base --output report.html"))
    run(command, *shlex.split("attend --model base --text 'a warm film' --output attention.html --png attention.png"))
    run(command, *shlex.split("export --format stock --model base --output stock"))
    run(command, *shlex.split("verify base"))
    run(command, *shlex.split("push --model base --repo name"))  # lists the files
    run(bin / "python", "-c", LOAD)
    run(bin / "python", *shlex.split("-m pretrain --corpus text.txt --output again --max-steps 2"))
    run(
        bin / "accelerate",
        *shlex.split(f"{LAUNCH} -m pretrain --corpus text.txt --output more --max-steps 2"),
    )
    run(bin / "python", *shlex.split("-m finetune --help"))
    printed = run(command, *shlex.split("export --format onnx --model base --output onnx"), fails=True)
    assert "hf-tiny-transformer[export]" in printed


def main(wheel: str, environment: str | None = None) -> None:
    """Install the wheel in steps, and run the commands after each."""
    wheel = str(Path(wheel).resolve())
    with tempfile.TemporaryDirectory() as temporary:
        venv, folder = Path(environment or Path(temporary) / "venv").resolve(), Path(temporary) / "empty"
        folder.mkdir()
        os.chdir(folder)
        os.environ["HF_TINY_TRANSFORMER_CACHE"] = str(Path(temporary) / "cache")
        bin = venv / ("Scripts" if os.name == "nt" else "bin")
        run(sys.executable, "-m", "venv", venv)
        install = [bin / "python", "-m", "pip", "install", "--constraint", CONSTRAINTS]
        run(*install, wheel)
        if "jsonargparse" not in run(bin / "python", "-c", DISTRIBUTIONS).split():  # an environment may be used again
            check_bare(bin)
        run(*install, f"{wheel}[train]")
        check_train(bin, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
