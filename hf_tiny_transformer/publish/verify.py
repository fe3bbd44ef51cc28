"""The command `verify`: check that a model directory is ready to be published."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..common import foreign_code
from ..common.arguments import CommandParser
from ..common.checkpoints import read_config_json, require_finite
from ..common.errors import RunError, one_line, plural
from ..common.files import SUMS, damage, read_json
from . import open_everywhere
from .card import CARD_FILE, FACTS_FILE, THIS_DIRECTORY, Figure, read_facts, table_line
from .card_code import refused_code

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
TEXTS = {".json", ".jsonl", ".md", ".yaml"}
VOCABULARIES = {"tokenizer.json", "vocab.json"}  # their entries may look like paths
# an absolute path in a folder where people and machines keep files; not part of a URL
_LOCAL_PATH = re.compile(
    r"(?<![\w./:~-])(?:/(?:home|root|tmp|Users|mnt|media|opt|srv|var|data|work|scratch|workspace|private|Volumes)/[\w.-]+"
    r"|[A-Za-z]:(?:\\\\?|/)(?!/)[\w.-]+|~/[\w.-]+|file://\S+)"
)
_PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Finding(NamedTuple):
    """The result of one check; `problem` is what is wrong and what to do, or None."""

    check: str
    problem: str | None


def main(argv: list[str]) -> None:
    """Run the command."""
    description = "Check a model directory before it is published. No foreign code is run."
    parser = CommandParser("hf-tiny-transformer verify", description)
    parser.add_argument("model", type=Path, help="Model directory.")
    require_verified(parser.parse(argv).model)


def require_verified(directory: Path) -> None:
    """Run all checks, print one line for each, and raise a RunError if one failed."""
    failed = 0
    for check, problem in verify(directory):
        print(f"{check}: " + ("ok" if problem is None else f"FAILED: {problem}"), flush=True)
        failed += problem is not None
    if failed:
        raise RunError(f"{directory}: checks failed: {failed}; the model is not ready to be published")


def verify(directory: Path) -> Iterator[Finding]:
    """Yield the findings; the directory's code runs, in processes of its own, only if it is this package's."""
    read_config_json(directory, "verify")
    yield _finding("no pickle", _pickles, directory)
    yield _finding("weights are finite", _finite, directory)
    if (directory / SUMS).is_file():
        yield _finding("checksums", _sums, directory)
    yield (code := _finding("no foreign code", foreign_code.find, directory))
    with tempfile.TemporaryDirectory() as scratch:
        if code.problem is None:
            yield from _open_everywhere(directory, scratch)
        card, problem = _read_card(directory)
        yield Finding("card: metadata", problem)
        if card is not None:
            yield _finding("card: figures", _figures, card, directory)
            if code.problem is None:
                yield _finding("card: code runs", _code, card, directory, scratch)
    yield _finding("no local path", _local_paths, directory)


def run_apart(arguments: list[str], directory: Path, scratch: str) -> tuple[bool, str]:
    """Run Python in a model directory as a user of the model would: without this package and without a network.

    Transformers copies the model's code to `scratch`. Return success, and the output or the last line of the error.
    """
    done = subprocess.run(
        [sys.executable, "-P", *arguments],  # -P: do not import attention.py and others from the model directory
        cwd=directory,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(scratch).resolve())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    failed = done.returncode != 0
    return not failed, (done.stderr.strip().splitlines() or ["failed"])[-1] if failed else done.stdout


def _finding(check: str, run: Callable[..., str | None], *arguments: Any) -> Finding:
    try:
        return Finding(check, run(*arguments))
    except (RunError, OSError, UnicodeDecodeError, SafetensorError) as error:
        return Finding(check, one_line(error))


def _published_files(directory: Path) -> list[Path]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in files if path.relative_to(directory).parts[0] != foreign_code.KEPT_LOCALLY)


def _pickles(directory: Path) -> str | None:
    found = [path.relative_to(directory) for path in _published_files(directory) if path.suffix.lower() in PICKLES]
    return (
        f"{plural(len(found), 'file')} (first: {found[0]}); remove them, or save them as safetensors" if found else None
    )


def _finite(directory: Path) -> str | None:
    for file in sorted(directory.glob("*.safetensors")):
        require_finite(load_file(file), file.name, "publish another checkpoint")
    return None


def _sums(directory: Path) -> str | None:
    problem = damage(directory)
    return problem and f"{problem}; restore it, or delete {SUMS} if you changed it yourself"


def _open_everywhere(directory: Path, scratch: str) -> Iterator[Finding]:
    succeeded, printed = run_apart([open_everywhere.__file__, "."], directory, scratch)
    if not succeeded:
        yield Finding("opens", f"{printed}; correct config.json, or save the model again")
        return
    for line in printed.splitlines():
        result = json.loads(line)
        problem = result["problem"] and f"{' '.join(result['problem'].split())}; save model and tokenizer there again"
        yield Finding(f"opens with {result['name']}", problem)


def _read_card(directory: Path) -> tuple[ModelCard | None, str | None]:
    """Return the card, and what is wrong with its metadata as huggingface_hub parses it."""
    file = directory / CARD_FILE
    if not file.is_file():
        return None, f"no {CARD_FILE}; the commands that train a model write one"
    try:
        card = ModelCard(file.read_text(encoding="utf-8"))
    except Exception as error:  # yaml and huggingface_hub have their own types
        return None, f"{CARD_FILE} cannot be parsed ({one_line(error)}); correct it"
    needed = {"library_name": "library_name", "tags": "tags", "eval_results": "model-index"}
    missing = [name for field, name in needed.items() if not card.data.get(field)]
    return card, f"{CARD_FILE} has no {', '.join(missing)}; add it between the --- lines" if missing else None


def _figures(card: ModelCard, directory: Path) -> str | None:
    """Compare the card with its facts, and the facts with the files that they come from."""
    rows, figures = read_facts(directory)
    lines = {line.strip() for line in card.text.splitlines()}
    for line in map(table_line, rows):
        if line not in lines:
            return f"{CARD_FILE} lacks this row of {FACTS_FILE}: {line}"
    results = card.data.get("eval_results") or []
    stated = [str((one.dataset_split, one.metric_type, one.metric_value)) for one in results]
    if sorted(stated) != sorted(str((figure.split, figure.metric, round(figure.value, 6))) for figure in figures):
        return f"the model-index of {CARD_FILE} does not have the figures of {FACTS_FILE}; write the card again"
    for figure in figures:
        number = _value_at(directory, figure)
        if not isinstance(number, int | float) or round(number, 6) != round(figure.value, 6):
            place = f"{figure.file} has {number} at {figure.pointer}"
            return f"{FACTS_FILE} states {figure.value} as {figure.split} {figure.metric}, but {place}"
    return None


def _value_at(directory: Path, figure: Figure) -> Any:
    value: Any = read_json(directory / figure.file, "write the card again")
    try:
        for key in figure.pointer.split("/")[1:]:
            value = value[int(key)] if isinstance(value, list) else value[key]
    except (LookupError, TypeError, ValueError):
        return None
    return value


def _code(card: ModelCard, directory: Path, scratch: str) -> str | None:
    match = _PYTHON_BLOCK.search(card.text)
    if match is None or THIS_DIRECTORY not in match[1]:
        return f"{CARD_FILE}: its first ```python block must load the model and contain the line {THIS_DIRECTORY}"
    if problem := refused_code(match[1]):
        return f"not run: in the first ```python block of {CARD_FILE}, {problem}; restore it"
    succeeded, printed = run_apart(["-c", match[1]], directory, scratch)
    return None if succeeded else f"{printed}; correct the first ```python block of {CARD_FILE}"


def _local_paths(directory: Path) -> str | None:
    for file in _published_files(directory):
        if file.suffix.lower() not in TEXTS or file.name in VOCABULARIES:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if found := _LOCAL_PATH.search(line):
                return f"{file.relative_to(directory)}, line {number}: {found[0]}; replace it by a name"
    return None
