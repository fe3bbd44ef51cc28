"""The one argument parser: flags from a settings dataclass, either spelling, one-line errors with suggestions."""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from .errors import UserError, one_line, suggestion

S = TypeVar("S")
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}


class CommandParser(ArgumentParser):
    """A parser of one command."""

    def __init__(self, prog: str = "", description: str = "", **options: Any) -> None:
        own = {"exit_on_error": False, "allow_abbrev": False, "formatter_class": _HelpFormatter}
        super().__init__(prog=prog, description=description, **(own | options))  # jsonargparse makes parsers of parts

    def add_settings(
        self, settings: type[Any], *, positional: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Add a flag for every field of a dataclass, with the help text from the `Args:` section of its docstring.

        Args:
            settings: A dataclass.
            positional: Fields that are given without a flag.
            defaults: Values of a settings file, which replace the defaults of the fields. Lists are then given as in
                the file: --examples '["a", "b"]'.
        """
        hints, helps = get_type_hints(settings), _help_texts(settings)
        for field in fields(settings):
            name, hint, item = field.name, hints[field.name], _item_type(hints[field.name])
            options: dict[str, Any] = {"help": helps.get(name, "")}
            if name in positional:
                self.add_argument(name, type=item or hint, nargs="+" if item else None, **options)
                continue
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            default = (defaults or {}).get(name, default)
            options |= {"required": True} if default is MISSING else {"default": default}
            if default is not None:  # the parser shows it
                options["help"] = re.sub(r"\s*Default: \S+\.$", "", options["help"])
            if hint is bool:
                options |= {"action": ActionYesNo, "nargs": "?"}
            elif item is not None and not is_dataclass(item) and defaults is None:
                options |= {"type": item, "nargs": "+"}
            else:
                options |= {"type": hint}
                if item is not None and is_dataclass(item) and default is not MISSING:
                    options["help"] += f" (default: {json.dumps(default).replace('%', '%%')})"
            self.add_argument(f"--{name}", **options)

    def parse(self, argv: Sequence[str]) -> Namespace:
        """Parse the arguments of a command; --help prints and exits with 0.

        `--max-steps` and `--max_steps` are the same flag.

        Raises:
            UserError: A flag is unknown or missing, or a value has the wrong type; one line, with "did you mean".
        """
        try:
            return self.parse_args([with_underscores(argument) for argument in argv])
        except ArgumentError as error:
            raise UserError(f"{self._explain(str(error), argv)}; see {self.prog} --help") from None

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
        names = _type_name(getattr(action, "_typehint", None))
        return f"must be {names}" if names else one_line(ValueError(message), 200)


class _HelpFormatter(DefaultHelpFormatter):
    """Show defaults, but no Python types: the text of a flag describes its value."""

    def _get_type_str(self, action: Any) -> None:
        return None

    def _get_help_string(self, action: Any) -> str | None:
        text = super()._get_help_string(action)
        if action.default is None or "(default: " in (action.help or ""):
            text = text and text.replace(" (default: %(default)s)", "")
        return text


def build(settings: type[S], values: Namespace, **more: Any) -> S:
    """Make a settings dataclass from what `CommandParser.parse` returned, and from `more` fields."""
    given = {field.name: values[field.name] for field in fields(settings) if field.name in values}  # type: ignore[arg-type]
    return settings(**given, **more)


def with_underscores(argument: str) -> str:
    """Return `--max-steps=3` as `--max_steps=3`; anything but a flag is unchanged."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _type_name(hint: Any) -> str | None:
    """Return the values that a type hint allows, in words; None for a type without a plain name."""
    if get_origin(hint) in (Union, types.UnionType):
        names = [_type_name(part) for part in get_args(hint)]
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
