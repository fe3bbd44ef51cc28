"""The command `hf-tiny-transformer`, also `python -m hf_tiny_transformer`: one table of commands."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import sys
from collections.abc import Sequence

from . import __version__
from .common.errors import UserError, first_line, run_command, suggestion

PROG = "hf-tiny-transformer"
PACKAGES = ("hf_tiny_transformer", "pretrain", "finetune")
# command -> (function of its arguments, its line of --help)
COMMANDS = {
    "pretrain": ("pretrain.cli:main", "train a model on your text"),
    "finetune": ("finetune.__main__:main", "fine-tune a model on a task, and report its scores"),
    "predict": ("finetune.predict:main", "apply a fine-tuned model to the rows of a file"),
    "blimp": ("finetune.blimp:main", "measure how often a model prefers the grammatical sentence"),
    "report": ("pretrain.report:main", "compare pretraining runs on one HTML page"),
    "attend": ("hf_tiny_transformer.attend.page:main", "show a model's attention as a page or a picture"),
    "export": ("hf_tiny_transformer.convert.stock:export", "convert a model to a stock architecture or ONNX"),
    "import": ("hf_tiny_transformer.convert.stock:import_", "convert a stock bert or modernbert checkpoint to ours"),
    "verify": ("hf_tiny_transformer.publish.verify:main", "check a model directory before it is published"),
    "push": ("hf_tiny_transformer.publish.push:main", "verify a model directory, then upload it to the Hub"),
}


COMPLETION = """_hf_tiny_transformer() {{
local words=""
case $COMP_CWORD:${{COMP_WORDS[1]}} in
{cases}
esac
COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _hf_tiny_transformer {prog}"""


def main(argv: Sequence[str]) -> None:
    """Run the command that the first argument names with the others."""
    name, *arguments = argv or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print(f"usage: {PROG} COMMAND [ARGUMENTS]\n\ncommands:")
        print("\n".join(f"  {command:{width}}  {text}" for command, (_, text) in COMMANDS.items()))
        print(f"\n{PROG} COMMAND --help describes the arguments of a command; --version prints the version;")
        print("--print-completion bash|zsh prints a script that completes commands and flags.")
        return
    if name == "--print-completion":
        return print_completion(arguments)
    if name == "--version":
        print(__version__)
        return
    if name not in COMMANDS:
        raise UserError(f"unknown command {name}{suggestion(name, list(COMMANDS))}; see {PROG} --help")
    run(name, arguments)


def print_completion(shell: Sequence[str]) -> None:
    """Print a script that completes commands and flags; it holds the flags that each command's --help shows."""
    if list(shell) not in (["bash"], ["zsh"]):
        raise UserError(f"--print-completion {' '.join(shell)}: must be bash or zsh")
    cases = [f'1:*) words="{" ".join(COMMANDS)}" ;;']
    for name in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
            run(name, ["--help"])
        shown = " ".join(re.findall(r"(?m)^  -.*", text.getvalue()))
        flags = dict.fromkeys(re.findall(r"(?<= )--[a-z0-9-]+", shown))
        cases.append(f'*:{name}) words="{" ".join(flags)}" ;;')
    start = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n" if shell[0] == "zsh" else ""
    print(f"{start}{COMPLETION.format(cases=chr(10).join(cases), prog=PROG)}")


def run(name: str, argv: Sequence[str]) -> None:
    """Run a command of the table; a missing package is a UserError that names the extra to install."""
    module, _, function = COMMANDS[name][0].partition(":")
    install = f"run: pip install '{PROG}[{'export' if name == 'export' else 'train'}]'"
    try:
        from .common.environment import quieten_libraries  # imports torch

        quieten_libraries()
        getattr(importlib.import_module(module), function)(list(argv))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", *PACKAGES):
            raise
        raise UserError(f"{name} requires {package}, which is not installed; {install}") from None
    except ImportError as error:
        if error.name is not None:
            raise
        raise UserError(f"{name}: {first_line(error)}; {install}") from None  # transformers' own check of its backends


def main_cli() -> None:
    """Run the command line, and exit with the status of its command."""
    sys.exit(run_command(lambda: main(sys.argv[1:])))
