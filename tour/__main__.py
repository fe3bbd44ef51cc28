"""`python -m tour`: writes docs/tour.md and docs/tour.zh-CN.md anew, and the pictures whose models are there."""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from transformers.utils import logging as transformers_logging

from hf_tiny_transformer.runs import atomic_write_text, run_cli

from .numbers import all_numbers

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = {"tour.md": "lines", "tour.zh-CN.md": "行"}  # page -> what stands before the numbers of source lines


def source(name: str, word: str) -> str:
    """A link from docs/ to the lines of a class or function, "package.module:Name.method"."""
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    lines, first = inspect.getsourcelines(inspect.unwrap(found))
    file = Path(inspect.getsourcefile(inspect.unwrap(found))).relative_to(ROOT).as_posix()
    last = first + len(lines) - 1
    return f"[`{path}`, {file}, {word} {first}–{last}](../{file}#L{first}-L{last})"  # noqa: RUF001


def render(page: str) -> str:
    """The text of docs/PAGE as the code is now."""
    template = (Path(__file__).parent / f"{page}.j2").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals["source"] = lambda name: source(name, LANGUAGES[page])
    return environment.from_string(template).render(all_numbers())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tour", description=__doc__, allow_abbrev=False)
    parser.add_argument("--model", type=Path, default="runs/sample/pretrained", help="an encoder: make pretrain's")
    parser.add_argument("--seq2seq", type=Path, default="runs/seq2seq", help="of python -m pretrain --recipe seq2seq")
    parser.add_argument("--digits", type=Path, default="runs/digits", help="of python -m benchmarks.digits")
    given = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for page in LANGUAGES:
        atomic_write_text(ROOT / "docs" / page, render(page))
        print(f"docs/{page}")
    from .pictures import draw_all

    for line in draw_all(ROOT / "docs" / "tour", given.model, given.seq2seq, given.digits):
        print(line)


if __name__ == "__main__":
    sys.exit(run_cli(main))
