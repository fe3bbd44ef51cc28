"""The command line: the settings of a run and every field of its recipe, from a YAML file and from flags."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from hf_tiny_transformer.common.arguments import CommandParser, build, with_underscores
from hf_tiny_transformer.common.environment import quieten_libraries
from hf_tiny_transformer.common.errors import UserError, one_line, suggestion
from hf_tiny_transformer.common.processes import is_main

from . import report
from .recipe import DEFAULT_RECIPE, DEFAULT_RECIPE_WITH_INIT, RECIPES, Recipe, find_recipe
from .record import RECIPE_FILE
from .run import pretrain
from .settings import RunSettings

DESCRIPTION = (
    "Pretrain a model on your text by a recipe; every field of the recipe is a flag. `python -m pretrain report` "
    "compares runs on one HTML page."
)
FIXED_BY_INIT = ("--family", "--model", "--vocab_size", "--lowercase", "--embedding_init", "--position_init")


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
    argv = [with_underscores(argument) for argument in argv]
    path = _recipe_path(argv)
    parser = CommandParser("python -m pretrain", DESCRIPTION)
    names = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
    own = f"Published recipe ({names}) or YAML file; other flags override its fields."
    parser.add_argument("--recipe", default=path.stem if path.parent == RECIPES else str(path), help=own)
    parser.add_settings(RunSettings)
    parser.add_settings(Recipe, defaults=_read_recipe(path))
    values = parser.parse(argv)
    settings = build(RunSettings, values)
    if settings.init is not None:
        _refuse_flags_beside_init(argv, settings.init)
    return settings, build(Recipe, parser.instantiate_classes(values))


def _recipe_path(argv: list[str]) -> Path:
    """Return the recipe, which is needed before all flags are known. A run that is resumed brings its own."""
    output, init = _value(argv, "--output"), _value(argv, "--init")
    name = _value(argv, "--recipe")
    own = Path(output or "") / RECIPE_FILE
    if name is None and "--resume" in [argument.partition("=")[0] for argument in argv] and own.is_file():
        return own
    return find_recipe(name or (DEFAULT_RECIPE if init is None else DEFAULT_RECIPE_WITH_INIT))


def _value(argv: list[str], flag: str) -> str | None:
    """Return the last value of a flag."""
    value = None
    for place, argument in enumerate(argv):
        name, equals, attached = argument.partition("=")
        if name == flag:
            value = attached if equals else (argv[place + 1 :] or [None])[0]
    return value


def _read_recipe(path: Path) -> dict[str, Any]:
    """Return the fields of a recipe file.

    Raises:
        UserError: The file is not YAML, or a field is unknown or has the wrong type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--recipe {path}: cannot be read ({one_line(error, 200)}); correct the file") from None
    known = [field.name for field in fields(Recipe)]
    if not isinstance(content, dict):
        raise UserError(f"--recipe {path}: must be a mapping of {', '.join(known)}")
    hints = get_type_hints(Recipe)
    for name, value in content.items():
        if name not in known:
            raise UserError(f"--recipe {path}: unknown field {name}{suggestion(str(name), known)}")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument(f"--{name}", type=hints[name])
        try:
            parser.parse_object({name: deepcopy(value)})
        except ArgumentError as error:
            raise UserError(f"--recipe {path}, field {name}: {one_line(error, 300)}") from None
    if missing := [name for name in ("family", "model", "stages", "vocab_size") if name not in content]:
        raise UserError(f"--recipe {path}: lacks the field {missing[0]}")
    return content


def _refuse_flags_beside_init(argv: list[str], init: str) -> None:
    for argument in argv:
        flag = argument.partition("=")[0]
        if flag.partition(".")[0] in FIXED_BY_INIT:
            raise UserError(f"{flag}: --init {init} brings its own model and tokenizer; omit this flag")
