"""`python -m hf_tiny_transformer verify DIR`: is this directory ready to be published?"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open

from . import foreign_code, open_everywhere
from .card_code import refused_snippet
from .card_figures import CardFigures, read_figures
from .cards import CARD_FILE, SECTIONS, run_apart, snippet
from .checkpoint_files import read_config_json
from .runs import RunError, UserError

KEPT_HERE = "checkpoints"  # of a run; never published
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
TEXTS = {".json", ".jsonl", ".md", ".yaml"}
VOCABULARIES = {"tokenizer.json", "vocab.json"}  # their entries may look like anything
# a folder at the root of a file system, on Unix where people and machines keep theirs; not part of an address
_MACHINE_PATH = re.compile(
    r"(?<![\w./:~-])(?:/(?:home|root|tmp|Users|mnt|media|opt|srv|var|data|work|scratch|workspace|private|Volumes)/[\w.-]+"
    r"|[A-Za-z]:(?:\\\\?|/)(?!/)[\w.-]+|~/[\w.-]+|file://\S+)"
)


@dataclass(frozen=True)
class Finding:
    """One check's result; `problem` says what is wrong and what to do, and is None where all is well."""

    check: str
    problem: str | None


def add_verify_command(commands: argparse._SubParsersAction) -> None:
    """Registers the sub-command."""
    command = commands.add_parser(
        "verify",
        help="check a model directory before it is published; runs no code but this package's",
        allow_abbrev=False,
    )
    command.add_argument("model", type=Path, metavar="DIR", help="model directory, from pretrain or finetune")
    command.set_defaults(run=lambda given: require_verified(given.model))


def require_verified(directory: Path) -> None:
    """Prints one line a check.

    Raises:
        UserError: no model directory.
        RunError: a check failed.
    """
    failed = 0
    for finding in verify(directory):
        print(f"{finding.check}: " + ("ok" if finding.problem is None else f"FAILED: {finding.problem}"), flush=True)
        failed += finding.problem is not None
    if failed:
        raise RunError(f"{directory}: {failed} check{'s' * (failed > 1)} failed; not ready to be published")


def verify(directory: Path) -> Iterator[Finding]:
    """The findings, one after the other. The code that the directory brings is run, in processes of its own, if it is
    this package's.

    Raises:
        UserError: no model directory.
    """
    read_config_json(directory)
    yield _finding("no pickle", _check_pickles, directory)
    yield _finding("weights in safetensors", _check_weights, directory)
    own_code = _finding("no code of others", foreign_code.find, directory)
    yield own_code
    with tempfile.TemporaryDirectory() as scratch:
        if own_code.problem is None:
            yield from _open_everywhere(directory, scratch)
        card, problem = _read_card(directory)
        yield Finding("card: metadata", problem)
        if card is not None:
            yield _finding("card: sections", _check_sections, card)
            yield _finding("card: figures", _check_figures, card, directory)
            if own_code.problem is None:
                yield _finding("card: code runs", _check_snippet, card, directory, scratch)
    yield _finding("no path of a machine", _check_paths, directory)


def _finding(check: str, run: Callable[..., str | None], *arguments) -> Finding:
    try:
        return Finding(check, run(*arguments))
    except (UserError, OSError, UnicodeDecodeError) as error:
        return Finding(check, " ".join(str(error).split()))


def files_of(directory: Path) -> list[Path]:
    """All files but those of a run's checkpoints, sorted."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in files if path.relative_to(directory).parts[0] != KEPT_HERE)


def _check_pickles(directory: Path) -> str | None:
    found = [path.relative_to(directory) for path in files_of(directory) if path.suffix.lower() in PICKLES]
    return f"{found[0]} ({len(found)} such): remove it, or save it as safetensors" if found else None


def _check_weights(directory: Path) -> str | None:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        return "no *.safetensors file: save the model with save_pretrained"
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                weights.keys()
        except SafetensorError as error:
            return f"{file.name} is truncated or corrupt ({error}): save the model again"
    return None


def _open_everywhere(directory: Path, scratch: str) -> Iterator[Finding]:
    well, printed = run_apart([open_everywhere.__file__, "."], directory, scratch)
    if not well:
        yield Finding("opens", f"{printed}: mend config.json, or save the model again")
        return
    for line in printed.splitlines():
        answer = json.loads(line)
        problem = answer["problem"] and f"{' '.join(answer['problem'].split())}: save model and tokenizer there again"
        yield Finding(f"opens with {answer['name']}", problem)


def _read_card(directory: Path) -> tuple[ModelCard | None, str | None]:
    """The card, and what is wrong with its metadata, by `huggingface_hub`'s own reading of it."""
    file = directory / CARD_FILE
    if not file.is_file():
        return None, f"no {CARD_FILE}: make the model with pretrain or finetune, which write one"
    try:
        card = ModelCard(file.read_text(encoding="utf-8"))
    except Exception as error:  # yaml and huggingface_hub have errors of their own
        return None, f"{CARD_FILE} cannot be read ({' '.join(str(error).split())}): mend it"
    lacking = [name for name in ("library_name", "tags") if not card.data.get(name)]
    if not card.data.eval_results:
        lacking.append("model-index")
    return card, f"{CARD_FILE} lacks {', '.join(lacking)}: add it between the --- lines" if lacking else None


def _check_sections(card: ModelCard) -> str | None:
    headings = {line.removeprefix("## ").strip() for line in card.text.splitlines() if line.startswith("## ")}
    lacking = [section for section in SECTIONS if section not in headings]
    return f"{CARD_FILE} has no {', '.join(lacking)}: write the section" if lacking else None


def _check_figures(card: ModelCard, directory: Path) -> str | None:
    figures = read_figures(directory)
    lines = {line.strip() for line in card.text.splitlines()}
    for line in figures.lines():
        if line not in lines:
            return f"{CARD_FILE} lacks this row, which the run's files give: {line}"
    return _wrong_index(card, figures)


def _wrong_index(card: ModelCard, figures: CardFigures) -> str | None:
    stated = [(one.dataset_split, one.metric_type, one.metric_value) for one in card.data.eval_results or []]
    for figure in figures.index:
        if figure not in stated:
            return f"{CARD_FILE}'s model-index lacks {' '.join(map(str, figure))}, which the run's files give"
    if len(stated) > len(figures.index):
        return f"{CARD_FILE}'s model-index has figures that the run's files do not give: remove them"
    return None


def _check_snippet(card: ModelCard, directory: Path, scratch: str) -> str | None:
    code = snippet(card.text)
    if refused := refused_snippet(code):
        return f"not run: {CARD_FILE}'s first ```python block, {refused}; write it as pretrain and finetune do"
    well, printed = run_apart(["-c", code], directory, scratch)
    return None if well else f"{printed}: mend the first ```python block of {CARD_FILE}"


def _check_paths(directory: Path) -> str | None:
    for file in files_of(directory):
        if file.suffix.lower() not in TEXTS or file.name in VOCABULARIES:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if found := _MACHINE_PATH.search(line):
                return f"{file.relative_to(directory)}, line {number}: {found[0]}: replace it by a name"
    return None
