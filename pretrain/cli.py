"""The command line: run settings, and every field of the recipe, from YAML and from flags."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import fields
from pathlib import Path

import jsonargparse
from transformers.utils import logging as transformers_logging

from hf_tiny_transformer import foreign_code
from hf_tiny_transformer.runs import UserError

from . import report
from .recipe import DEFAULT_RECIPE, DEFAULT_RECIPE_WITH_INIT, Recipe, find_recipe
from .record import RECIPE_FILE
from .run import pretrain
from .settings import RunSettings

RECIPE_FLAG = "--recipe"
FIXED_BY_INIT = ("--family", "--model", "--vocab_size", "--lowercase", "--embedding_init", "--position_init")


def main(argv: list[str] | None = None) -> None:
    """`python -m pretrain ...` and `python -m pretrain report ...`; see --help."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["report"]:
        return report.main(argv[1:])
    settings, recipe = parse(argv)
    level = logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR  # one process tells all
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    transformers_logging.disable_progress_bar()
    for noisy in ("httpx", "transformers", "accelerate", "datasets", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    pretrain(settings, recipe)


def parse(argv: list[str]) -> tuple[RunSettings, Recipe]:
    """Raises:
    UserError: an unknown flag or recipe field, or a value of the wrong type; --help exits with 0.
    """
    recipe_name, rest = _take_recipe([_with_underscores(argument) for argument in argv])
    parser = jsonargparse.ArgumentParser(
        prog="python -m pretrain",
        description="Pretrain by a recipe. Every field of it is a flag. `python -m pretrain report` compares runs.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        RECIPE_FLAG, action="config", help="a published recipe or a YAML file; flags override its fields"
    )
    parser.add_argument("--output", type=str, required=True, help="directory of the run")
    parser.add_argument(
        "--corpus",
        type=str,
        nargs="+",
        default=["sample"],
        help="sample, files, folders, globs, hub:NAME, hub-stream:NAME",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the run in --output")
    parser.add_argument(
        "--save_best", action="store_true", help="keep the checkpoint of the lowest validation loss, and publish it"
    )
    parser.add_argument("--trust_remote_code", action="store_true", help=foreign_code.FLAG_HELP)
    skipped = {"output", "corpus", "resume", "save_best", "trust_remote_code"}
    parser.add_class_arguments(RunSettings, skip=skipped, as_group=False)
    parser.add_class_arguments(Recipe, as_group=False)
    try:
        values = parser.parse_args([RECIPE_FLAG, str(recipe_name), *rest])
        built = parser.instantiate_classes(values)
    except jsonargparse.ArgumentError as error:
        raise UserError(_one_line(error, recipe_name)) from None
    values = {name: value for name, value in vars(built).items() if name != "recipe"}
    settings = RunSettings(**{f.name: values.pop(f.name) for f in fields(RunSettings)})
    if settings.init is not None:
        _refuse_flags_beside_init(rest, settings.init)
    return settings, Recipe(**values)


def _take_recipe(argv: list[str]) -> tuple[Path, list[str]]:
    """The recipe comes first wherever it stood, so that flags before it override it too. A run that is resumed brings
    its own, unless another is named."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument(RECIPE_FLAG)
    first.add_argument("--output", default="")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--init")
    try:
        known, _ = first.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    own = Path(known.output) / RECIPE_FILE
    rest = [a for i, a in enumerate(argv) if not _is_recipe(a) and not (i and argv[i - 1] == RECIPE_FLAG)]
    if known.recipe is None and known.resume and own.is_file():
        return own, rest
    return find_recipe(known.recipe or (DEFAULT_RECIPE_WITH_INIT if known.init else DEFAULT_RECIPE)), rest


def _refuse_flags_beside_init(argv: list[str], init: str) -> None:
    for argument in argv:
        flag = argument.split("=", 1)[0]
        if flag.split(".", 1)[0] in FIXED_BY_INIT:
            raise UserError(f"{flag}: --init {init} brings a model and a tokenizer of its own; leave this flag out")


def _is_recipe(argument: str) -> bool:
    return argument.split("=", 1)[0] == RECIPE_FLAG


def _with_underscores(argument: str) -> str:
    """--max-steps and --max_steps are the same flag."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _one_line(error: Exception, recipe: Path) -> str:
    return f"{' '.join(str(error).split())} (flags, and fields of {recipe}; see --help)"
