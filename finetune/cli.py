"""The command line of fine-tuning, and the two commands that train nothing."""

from __future__ import annotations

import os
import shlex
from itertools import pairwise

from hf_tiny_transformer.common.arguments import CommandParser, build
from hf_tiny_transformer.common.errors import UserError
from hf_tiny_transformer.publish.facts import public_name

from .settings import FinetuneSettings

PROGRAM = "python -m finetune"
DESCRIPTION = (
    "Fine-tune a model on a task and report its scores. Two commands train nothing and have their own flags: "
    f"`{PROGRAM} predict --help` applies a fine-tuned model to a file, `{PROGRAM} --task blimp --help` measures a "
    "language model on BLiMP's minimal pairs."
)


def main(argv: list[str]) -> None:
    """Run the command.

    Args:
        argv: Its arguments; they may begin with `predict`.

    Raises:
        RunError: Bad input, or the run cannot be finished.
    """
    if argv[:1] == ["predict"]:
        from . import predict

        predict.main(argv[1:])
    elif "--task=blimp" in argv or ("--task", "blimp") in pairwise(argv):
        from . import blimp

        blimp.main(argv)
    else:
        settings = parse_settings(argv)
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1"):
            raise UserError("DeepSpeed (ACCELERATE_USE_DEEPSPEED) is unsupported; launch with pretrain/launch/ddp.yaml")
        command = shlex.join([*shlex.split(PROGRAM), *map(public_name, argv)])
        if settings.task == "glue":
            from .suite import run_suite

            run_suite(settings, command)
        else:
            from .run import Run

            Run(settings, command).execute()


def parse_settings(argv: list[str]) -> FinetuneSettings:
    """Return the settings that the flags describe.

    Raises:
        UserError: A flag is unknown or missing, or a value has the wrong type or is out of range.
    """
    parser = CommandParser(PROGRAM, DESCRIPTION)
    parser.add_settings(FinetuneSettings)
    return build(FinetuneSettings, parser.parse(argv))
