"""The one argument parser: flags from a settings dataclass, either spelling, one-line errors with suggestions."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from .errors import UserError, one_line, suggestion

S = TypeVar("S")
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


class CommandParser(ArgumentParser):
    """A parser of one command.

    Args:
        prog: How the command is called.
        description: The first paragraph of its help.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog, description=description, exit_on_error=False, allow_abbrev=False, formatter_class=_HelpFormatter
        )

    def add_settings(self, settings: type[Any], *, positional: Sequence[str] = (), skip: Sequence[str] = ()) -> None:
        """Add a flag for every field of a dataclass, with the help text from its docstring.

        Args:
            settings: A dataclass whose docstring describes its fields in an `Args:` section.
            positional: Fields that are given without a flag.
            skip: Fields without a flag.
        """
        hints, helps = get_type_hints(settings), _help_texts(settings)
        for field in fields(settings):
            if field.name not in skip:
                self._add_field(field, hints[field.name], helps.get(field.name, ""), field.name in positional)

    def parse(self, argv: Sequence[str]) -> Namespace:
        """Parse the arguments of a command; --help prints and exits with 0.

        Args:
            argv: The arguments without the command's name. `--max-steps` and `--max_steps` are the same flag.

        Raises:
            UserError: A flag is unknown or missing, or a value has the wrong type; one line, with "did you mean".
        """
        try:
            return self.parse_args([with_underscores(argument) for argument in argv])
        except ArgumentError as error:
            raise UserError(f"{self._explain(str(error), argv)}; see {self.prog} --help") from None

    def _add_field(self, field: Field[Any], hint: Any, help_text: str, positional: bool) -> None:
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        options: dict[str, Any] = {"help": help_text}
        if positional:
            self.add_argument(
                field.name, type=_item_type(hint) or hint, nargs="+" if _item_type(hint) else None, **options
            )
            return
        options |= {"required": True} if default is MISSING else {"default": default}
        if hint is bool:
            self.add_argument(f"--{field.name}", action=ActionYesNo, nargs="?", **options)
        elif (item := _item_type(hint)) is not None and not is_dataclass(item):
            self.add_argument(f"--{field.name}", type=item, nargs="+", **options)
        else:
            self.add_argument(f"--{field.name}", type=hint, **options)

    def _explain(self, message: str, argv: Sequence[str]) -> str:
        """Turn jsonargparse's message, which may fill a paragraph, into one line that names the flag."""
        known = [option for action in self._actions for option in action.option_strings]
        if match := re.search(r"unrecognized arguments: (\S+)", message):
            typed = next((word for word in argv if with_underscores(word) == match[1]), match[1])
            return f"unknown argument {typed}{suggestion(match[1].partition('=')[0], known)}"
        if match := re.search(r"arguments are required: ([^,]+)", message):
            flag = f"--{match[1].lstrip('-')}"
            return f"{flag if flag in known else match[1]} is required"
        if match := re.search(r'Parser key "([\w.]+)":\s*(.*)', message, re.DOTALL):
            return f"--{match[1]} {_given(match[1], argv)}: {self._expected(match[1], match[2])}"
        if match := re.search(r"argument --([\w.]+)(?:/\S+)?: expected", message):
            return f"--{match[1]} requires a value"
        if match := re.search(r"argument --([\w.]+)/\S+: invalid", message):
            return f"--{match[1]} {_given(match[1], argv)}: must be true or false, or have no value"
        return one_line(ValueError(message), 300)

    def _expected(self, name: str, message: str) -> str:
        action = next((a for a in self._actions if f"--{name}" in a.option_strings), None)
        hint = getattr(action, "_typehint", None)
        names = None if hint is None else type_name(hint)
        return f"must be {names}" if names else one_line(ValueError(message), 200)


class _HelpFormatter(DefaultHelpFormatter):
    """Show defaults, but no Python types: the text of a flag says what its value is."""

    def _get_type_str(self, action: Any) -> None:
        return None


def build(settings: type[S], values: Namespace, **more: Any) -> S:
    """Make a settings dataclass from parsed values.

    Args:
        settings: A dataclass.
        values: What `CommandParser.parse` returned.
        more: Fields that have no flag.
    """
    given = {field.name: values[field.name] for field in fields(settings) if field.name in values}  # type: ignore[arg-type]
    return settings(**given, **more)


def with_underscores(argument: str) -> str:
    """Return `--max-steps=3` as `--max_steps=3`; anything but a flag is unchanged."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def type_name(hint: Any) -> str | None:
    """Return the values that a type hint allows, in words; None for a type without a plain name."""
    if get_origin(hint) in (Union, types.UnionType):
        names = [type_name(part) for part in get_args(hint)]
        return " or ".join(name for name in names if name) if all(names) else None
    if get_args(hint) and get_origin(hint) is not list and all(isinstance(value, str) for value in get_args(hint)):
        return f"one of {', '.join(get_args(hint))}"
    return _TYPE_NAMES.get(hint)


def _item_type(hint: Any) -> type[Any] | None:
    """Return the item type of `list[X]` or `list[X] | None`; None for any other hint."""
    for part in (hint, *get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else (hint,):
        if get_origin(part) is list:
            return get_args(part)[0]
    return None


def _help_texts(settings: type[Any]) -> dict[str, str]:
    parsed = docstring_parser.parse(settings.__doc__ or "", style=docstring_parser.DocstringStyle.GOOGLE)
    return {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in parsed.params}


def _given(name: str, argv: Sequence[str]) -> str:
    """Return the value that was given for a flag, as it was typed."""
    for position, word in enumerate(map(with_underscores, argv)):
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
        if word == f"--{name}" and position + 1 < len(argv):
            return argv[position + 1]
    return ""
