"""The command line: the settings of a run and every field of its recipe, from a YAML file and from flags."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentError

from hf_tiny_transformer.common.arguments import CommandParser, build, normalized, program
from hf_tiny_transformer.common.environment import quieten_libraries
from hf_tiny_transformer.common.errors import UserError, one_line, suggestion
from hf_tiny_transformer.common.processes import is_main

from . import report
from .recipe import DEFAULT_RECIPE, DEFAULT_RECIPE_WITH_INIT, RECIPES, Recipe, Stage, find_recipe
from .run import pretrain
from .settings import RECIPE_FILE, RunSettings

DESCRIPTION = (
    "Pretrain a model on your text by a recipe; every field of the recipe is a flag. `hf-tiny-transformer report` "
    "compares runs on one HTML page."
)
FIXED_BY_INIT = ("--family", "--model", "--vocab-size", "--lowercase", "--embedding-init", "--position-init")


def main(argv: Sequence[str]) -> None:
    """Run `python -m pretrain ...` or `python -m pretrain report ...`."""
    if list(argv[:1]) == ["report"]:
        return report.main(argv[1:])
    settings, recipe = parse(argv)
    logging.basicConfig(level=logging.INFO if is_main() else logging.ERROR, format="%(message)s", stream=sys.stderr)
    quieten_libraries()
    pretrain(settings, recipe)


def parse(argv: Sequence[str]) -> tuple[RunSettings, Recipe]:
    """Return the settings and the recipe of a run; --help exits with 0 and shows the values that will run.

    Raises:
        UserError: A flag or a field of the recipe is unknown, or a value has the wrong type.
    """
    words = [normalized(word) for word in argv]
    path = _recipe_path(words)
    parser = CommandParser(program("pretrain"), DESCRIPTION)
    names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
    own = f"Published recipe ({names}) or YAML file; other flags override its fields."
    parser.add_argument("--recipe", default=path.stem if path.parent == RECIPES else str(path), help=own)
    parser.add_settings(RunSettings)
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    parser.add_settings(Recipe, defaults=_read_recipe(path, given))
    values = parser.parse(argv)
    settings = build(RunSettings, values)
    if settings.init is not None and (fixed := [flag for flag in given if flag.startswith(FIXED_BY_INIT)]):
        raise UserError(f"{fixed[0]}: --init {settings.init} brings its own model and tokenizer; omit this flag")
    return settings, build(Recipe, parser.instantiate_classes(values))


def _recipe_path(argv: list[str]) -> Path:
    """Return the recipe, which is needed before all flags are known. A run that is resumed brings its own."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--output", "--init", "--recipe", "--resume"):
        early.add_argument(flag, nargs="?", const="")
    given, _ = early.parse_known_args(argv)
    own = Path(given.output or "") / RECIPE_FILE
    if given.recipe is None and given.resume is not None and own.is_file():
        return own
    return find_recipe(given.recipe or (DEFAULT_RECIPE if given.init is None else DEFAULT_RECIPE_WITH_INIT))


def _read_recipe(path: Path, given: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of a recipe file; fields without default may also be among the flags `given`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--recipe {path}: cannot be read ({one_line(error, 200)}); correct the file") from None
    known = [field.name for field in fields(Recipe)]
    if not isinstance(content, dict):
        raise UserError(f"--recipe {path}: must be a mapping of {', '.join(known)}")
    missing = [field.name for field in fields(Recipe) if field.default is field.default_factory is MISSING]
    flags = {flag.lstrip("-").partition(".")[0].replace("-", "_") for flag in given}
    if missing := [name for name in missing if name not in {*content, *flags}]:
        advice = f"add it, or start from a copy of {RECIPES / DEFAULT_RECIPE}.yaml"
        raise UserError(f"--recipe {path}: lacks {', '.join(missing)}; {advice}")
    parser = CommandParser()
    for name in content:
        if name not in known:
            raise UserError(f"--recipe {path}: unknown field {name}{suggestion(str(name), known)}")
        parser.add_argument(f"--{name}", type=get_type_hints(Recipe)[name])
    try:
        parser.parse_object(deepcopy(content))
    except (ArgumentError, RecursionError) as error:
        odd = re.search(r"Option '(\S+)' is not accepted", str(error))
        hint = suggestion(odd[1], [field.name for field in fields(Stage)]) if odd else ""
        field, *rest = parser.explain(one_line(error)).removeprefix("--").split(" ")
        raise UserError(f"--recipe {path}: {' '.join([field.replace('-', '_'), *rest])}{hint}") from None
    return content
