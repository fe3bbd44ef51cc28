"""The command line: flags to `FinetuneSettings`, mistakes to one clear line."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from argparse import ArgumentError
from contextlib import nullcontext, redirect_stderr
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from jsonargparse import ActionYesNo, ArgumentParser

from hf_tiny_transformer.cards import public_name
from hf_tiny_transformer.runs import UserError, run_cli

from . import processes
from .commands import find_command
from .experiment import run_experiment
from .settings import FinetuneSettings
from .suite import run_suite
from .tasks import SUITE

PROGRAM = "python -m finetune"
DESCRIPTION = (
    "Fine-tune and measure. Two commands train nothing and have flags of their own: "
    f"`{PROGRAM} predict --help` answers a file of texts with a fine-tuned model, "
    f"`{PROGRAM} --task blimp --help` measures a language model on BLiMP's minimal pairs."
)
# may stand alone: --compare as well as --compare true
_SWITCHES = {"from_scratch", "compare", "submission", "resume", "trust_remote_code"}
DASHED = ("--trust-remote-code", "--trust_remote_code")  # one flag, spelled either way
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", type(None): "null"}


def main(argv: list[str] | None = None) -> int:
    """Runs the command with `argv` (default: the process's own) and returns its exit status: 0, 2 or 130."""
    arguments = sys.argv[1:] if argv is None else argv
    with nullcontext() if processes.is_main() else redirect_stderr(io.StringIO()):  # one process names an error
        return run_cli(lambda: (find_command(arguments) or _main)(arguments))


def _main(argv: list[str]) -> None:
    _refuse_deepspeed()
    settings = parse_settings(argv)
    import hf_tiny_transformer  # noqa: F401  (registers our model families with the Auto classes)

    run = run_suite if settings.task == SUITE else run_experiment
    run(settings, command=shlex.join([*shlex.split(PROGRAM), *map(public_name, argv)]))


def _refuse_deepspeed() -> None:
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1"):
        raise UserError("DeepSpeed (ACCELERATE_USE_DEEPSPEED): pretraining only; launch with pretrain/launch/ddp.yaml")


def parse_settings(argv: list[str]) -> FinetuneSettings:
    """Raises:
    UserError: an unknown flag, a missing one, or a value of the wrong type or out of range.
    """
    parser = _parser()
    try:
        values = parser.parse_args([argument.replace(*DASHED, 1) for argument in argv])
    except ArgumentError as error:
        raise UserError(_explain(str(error), argv)) from None
    return FinetuneSettings(**{field.name: values[field.name] for field in fields(FinetuneSettings)})


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog=PROGRAM, exit_on_error=False, allow_abbrev=False, description=DESCRIPTION)
    parser.add_class_arguments(FinetuneSettings, as_group=False, skip={*_SWITCHES, "choices"})
    helps = {match[1]: match[2] for match in re.finditer(r"^ +(\w+): (.+)$", FinetuneSettings.__doc__ or "", re.M)}
    for name in sorted(_SWITCHES):
        parser.add_argument(f"--{name}", action=ActionYesNo, nargs="?", default=False, help=helps[name])
    parser.add_argument("--choices", nargs="+", metavar="COLUMN", help=helps["choices"])
    return parser


def _explain(message: str, argv: list[str]) -> str:
    """jsonargparse's message, which may fill a paragraph, as one line that names the flag and what to do."""
    hints = get_type_hints(FinetuneSettings)
    if match := re.search(r'Parser key "(\w+)"', message):
        name = match[1]
        return f"--{name} {_given(name, argv)}: must be {_type_name(hints[name])}; see {PROGRAM} --help"
    if match := re.search(r"unrecognized arguments: (.+)", message):
        return f"unknown argument {match[1].split()[0]}; {PROGRAM} --help lists the flags"
    if match := re.search(r"arguments are required: (.+)", message):
        return f"--{match[1].split(',')[0]} is missing; see {PROGRAM} --help"
    if match := re.search(r"argument --(\w+)/\S+: invalid", message):
        return f"--{match[1]} {_given(match[1], argv)}: must be true or false, or stand alone"
    if match := re.search(r"argument --(\w+): expected (?:one|at least one) argument", message):
        return f"--{match[1]} needs a value: {_type_name(hints[match[1]])}"
    return f"{message}; see {PROGRAM} --help"


def _given(name: str, argv: list[str]) -> str:
    for position, word in enumerate(argv):
        if word.startswith(f"--{name}="):
            return word.split("=", 1)[1]
        if word == f"--{name}" and position + 1 < len(argv):
            return argv[position + 1]
    return ""


def _type_name(hint: Any) -> str:
    if hint is bool:
        return "true or false"
    if hint == list[str] | None:
        return "one column or several"
    return " or ".join(_TYPE_NAMES[part] for part in (get_args(hint) or (hint,)))
