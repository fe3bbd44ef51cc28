"""`python -m finetune`, and the command `hf-tiny-transformer finetune`."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys

# Trainer would spread one small model over all GPUs of the machine and multiply the batch size by their number.
if "RANK" not in os.environ:  # under `accelerate launch` each process has a GPU of its own
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns that it found no unused parameters

from hf_tiny_transformer.cli import run
from hf_tiny_transformer.common.errors import run_command
from hf_tiny_transformer.common.processes import is_main
from hf_tiny_transformer.publish.facts import public_name

from .run import Run
from .settings import PROGRAM, parse_settings
from .suite import run_suite


def main(argv: list[str]) -> None:
    """Run the command."""
    settings = parse_settings(argv)
    command = shlex.join([*shlex.split(PROGRAM), *map(public_name, argv)])
    if settings.task == "glue":
        run_suite(settings, command)
    else:
        Run(settings, command).execute()


if __name__ == "__main__":
    with contextlib.nullcontext() if is_main() else contextlib.redirect_stderr(io.StringIO()):  # one reports errors
        sys.exit(run_command(lambda: run("finetune", sys.argv[1:])))
