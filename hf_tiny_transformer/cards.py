"""What the cards of pretrained and of fine-tuned models have in common: a snippet that runs, an estimate of the energy,
names without anyone's folders, a licence."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from transformers import PreTrainedTokenizerBase

from . import foreign_code
from .runs import RunError, UserError

CARD_FILE = "README.md"
SECTIONS = ("How to load", "Data", "Model", "Training", "Evaluation", "Intended use", "Limits", "Licence")
THIS_DIRECTORY = 'model_id = "."  # this directory'  # a line of every snippet; push puts the Hub's name there
WATTS_PER_CPU_THREAD = 10.0  # assumed: a server processor's rated power over its cores, with memory, rounded up
_PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_MARKUP = re.compile(r"([\\`\[\]<>|])")
_LICENCE = re.compile(r"[a-z0-9]+([.+-][a-z0-9]+)*")


def check_license(name: str | None) -> None:
    """Raises:
    UserError: not spelled as the Hub spells licences.
    """
    if name is not None and _LICENCE.fullmatch(name) is None:
        raise UserError(
            f"--license {name}: give the Hub's short name, such as apache-2.0, mit or cc-by-4.0 "
            "(https://huggingface.co/docs/hub/repositories-licenses)"
        )


def public_name(text: str) -> str:
    """A path that leads through folders of this machine -> its last part; --flag=PATH too; anything else as it is."""
    flag, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    for path in (PurePosixPath(value), PureWindowsPath(value)):
        if path.is_absolute() or value.startswith("~") or ".." in path.parts:
            return flag + equals + (path.name or "root")
    return text


def escape(text: object, form: str = "text") -> str:
    """Return what a card says of names that others chose (files, labels, columns, models), so that it shows them and
    they cannot become Markdown or HTML of their own.

    Args:
        form: where it will stand: as "text", also in a table's cell; as "code", between backticks; or as a "block"
            between fences, of several lines.
    """
    if form == "block":
        return str(text).replace("```", "'''").replace("\r", "\n")
    line = "".join(c for c in " ".join(str(text).split()) if c.isprintable())
    return line.replace("`", "'") if form == "code" else _MARKUP.sub(r"\\\1", line)


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """For a card: its algorithm, its size, and what becomes of capitals."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    kind = type(tokenizer).__name__ if backend is None else type(backend.model).__name__
    lowercase = getattr(getattr(backend, "normalizer", None), "lowercase", None)
    case = {True: ", lower case", False: ", case kept", None: ""}[lowercase]
    return f"{kind}, {len(tokenizer):,} pieces{case}"


def estimate_energy(seconds: float, processes: int = 1) -> dict:
    """`kwh` (None where nothing is known of the GPU) and the `method` in words: time x watts, nothing measured."""
    if torch.cuda.is_available():
        watts = _gpu_power_limit()
        if watts is None:
            return {"kwh": None, "method": "not estimated: the power limit of the GPU cannot be read"}
        method = f"time x {processes} GPU(s) x {watts:g} W, the power limit: an upper bound for the GPU"
        return {"kwh": seconds * processes * watts / 3.6e6, "method": method}
    threads = processes * torch.get_num_threads()
    method = f"time x {threads} CPU thread(s) x an assumed {WATTS_PER_CPU_THREAD:g} W"
    return {"kwh": seconds * threads * WATTS_PER_CPU_THREAD / 3.6e6, "method": method}


def _gpu_power_limit() -> float | None:
    query = ["nvidia-smi", "--id=0", "--query-gpu=power.limit", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout)
    except (OSError, ValueError, subprocess.SubprocessError):  # no such program, or "[N/A]"
        return None


def snippet(card: str) -> str:
    """The card's Python that loads the model: its first block of code.

    Raises:
        UserError: there is none, or it does not load the directory that it lies in.
    """
    match = _PYTHON_BLOCK.search(card)
    if match is None:
        raise UserError("the card holds no ```python block that loads the model; write one")
    if THIS_DIRECTORY not in match[1]:
        raise UserError(f"the card's first ```python block lacks the line {THIS_DIRECTORY}; write it")
    return match[1]


def run_snippet(code: str, directory: str | os.PathLike) -> str:
    """Runs a snippet in this process, in `directory`; returns what it prints.

    Raises:
        RunError: it fails, or code lies or is named there that is not ours: the snippet trusts what it finds.
    """
    if foreign := foreign_code.find(Path(directory)):
        raise RunError(f"no model card is written, for its code would run code of others: {foreign}")
    printed = io.StringIO()
    try:
        with contextlib.chdir(directory), contextlib.redirect_stdout(printed):
            exec(compile(code, "the card's snippet", "exec"), {"__name__": "__main__"})
    except Exception as error:  # whatever it may be: a card must not promise what fails
        what = f"{type(error).__name__}: {error}"
        raise RunError(f"no model card is written, for the code it would show fails ({what})") from error
    return printed.getvalue().strip()


def run_apart(arguments: list[str], directory: str | os.PathLike, scratch: str | os.PathLike) -> tuple[bool, str]:
    """Runs Python in `directory` as a stranger would: another process that has not imported this package, no network,
    code of checkpoints kept in `scratch`. Returns whether it ended well, and what it printed or its last error line."""
    done = subprocess.run(
        [sys.executable, "-P", *arguments],  # -P: the model's own attention.py is no module to import from
        cwd=directory,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(scratch).resolve())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return True, done.stdout
    return False, (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
