"""The one argument parser: flags from a settings dataclass, either spelling, one-line errors with suggestions."""

from __future__ import annotations

import json
import re
import sys
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from docstring_parser import DocstringStyle, parse
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace

from .errors import UserError, one_line, suggestion

S = TypeVar("S")
_TYPES = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false", "NoneType": "null"}
_TYPES |= {"list": "a list", "dict": "a mapping"}
# jsonargparse's message about a value of a plain type, or of a union of them, on one line
_WRONG_TYPE = re.compile(
    r'Parser key "([\w.]+)": (?:Expected a (.*)\. Got|Does not .* Subtypes: \[(.*?)\] Errors: .* Given) value: (.*)'
)

_WRONG_ITEM = re.compile(
    r'Parser key "([\w.]+)": '
    r"(?:Not a valid subclass|.*(?:arguments are required: (.*)|Option '(.*)' is not accepted))"
)


class CommandParser(ArgumentParser):
    """A parser of one command."""

    def __init__(self, prog: str = "", description: str = "", **options: Any) -> None:
        own: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False, "formatter_class": _HelpFormatter}
        super().__init__(prog=prog, description=description, **(own | options))  # jsonargparse makes parsers of parts
        self._parts: dict[str, list[str]] = {}  # field -> fields of the dataclass that its items are

    def add_settings(
        self, settings: type[Any], *, positional: Sequence[str] = (), defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Add a flag for every field of a dataclass, with the help text from the `Args:` section of its docstring.

        Fields in `positional` are given without a flag. `defaults` are the values of a settings file, which replace
        those of the fields. Lists are then given as in the file: --examples '["a", "b"]'.
        """
        documented = parse(settings.__doc__ or "", style=DocstringStyle.GOOGLE).params
        helps = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in documented}
        hints = get_type_hints(settings)
        for field in fields(settings):
            name, hint, item = field.name, hints[field.name], _item_type(hints[field.name])
            options: dict[str, Any] = {"help": helps.get(name, ""), "metavar": _metavar(name, hint)}
            if name in positional:
                self.add_argument(name, type=item or hint, nargs="+" if item else None, **options)
                continue
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            default = (defaults or {}).get(name, default)
            options |= {"required": True} if default is MISSING else {"default": default}
            if default is not None:  # the parser shows it
                options["help"] = re.sub(r"\s*Default: [^.]\S*( \(\w+\))?\.$", "", options["help"])
            if hint is bool:
                options |= {"action": ActionYesNo(no_prefix="no-"), "nargs": "?"}
            elif item is not None and not is_dataclass(item) and defaults is None:
                options |= {"type": item, "nargs": "+"}
                options["help"] += f" (default: {' '.join(map(str, default))})" if default else ""
            else:
                options |= {"type": hint}
                if isinstance(default, (list, dict)):  # as it is typed
                    options["help"] += f" (default: {json.dumps(default).replace('%', '%%')})"
            self.add_argument(flag_of(name), **options)
            if item is not None and is_dataclass(item):
                self._parts[name] = [part.name for part in fields(item)]
            for extra in (f"{flag_of(name)}.help", f"{flag_of(name)}+"):  # which jsonargparse adds by itself
                if action := self._option_string_actions.pop(extra, None):
                    action.option_strings = [option for option in action.option_strings if option != extra]
                    if not action.option_strings:
                        action.container._remove_action(action)  # type: ignore[attr-defined]  # set by argparse

    def parse(self, argv: Sequence[str]) -> Namespace:
        """Parse the arguments of a command; --help prints and exits with 0.

        `--max-steps` and `--max_steps` are the same flag.

        Raises:
            UserError: A flag is unknown or missing, or a value has the wrong type; one line, with "did you mean".
        """
        required = [action for action in self._actions if action.required]
        shown: list[str] = [
            " ".join([*action.option_strings[:1], str(action.metavar or action.dest.upper())]) for action in required
        ]
        shown = [f"{word} ..." if action.nargs == "+" else word for word, action in zip(shown, required, strict=True)]
        self.usage = " ".join([self.prog, *shown, "[OPTIONS]"])
        try:
            return self.parse_args([normalized(argument) for argument in argv])
        except ArgumentError as error:
            raise UserError(f"{self.explain(one_line(error), argv)}; see {self.prog} --help") from None

    def explain(self, message: str, argv: Sequence[str] = ()) -> str:
        """Turn jsonargparse's message, which may fill a paragraph, into one line that names the flag."""
        known = [option for action in self._actions if action.help != SUPPRESS for option in action.option_strings]
        if match := re.search(r"unrecognized arguments: (\S+)", message):
            typed = next((word for word in argv if normalized(word) == match[1]), match[1])
            return f"unknown argument {typed}{suggestion(match[1].partition('=')[0], known)}"
        if match := _WRONG_ITEM.search(message):  # of a list of dataclasses
            close = suggestion(match[3] or "", self._parts.get(match[1], []))
            problem = f"unknown field {match[3]}{close}" if match[3] else f"an item lacks {match[2]}"
            problem = problem if match[2] or match[3] else "each item must be a mapping of fields"
            return f"{flag_of(match[1])}: {problem}"
        if match := re.search(r"arguments are required: ([^,]+)", message):
            flag = flag_of(match[1].lstrip("-"))
            return f"{flag if flag in known else match[1]} is required"
        if match := _WRONG_TYPE.search(message):
            found = re.findall(r"<class '(\w+)'>|Literal\[(.*?)\]", match[2] or match[3])
            names = [_TYPES.get(name, name) or f"one of {values}".replace("'", "") for name, values in found]
            outer = re.match(r'Parser key "(\w+)": Problem with given class_path', message)
            flag = flag_of(f"{outer[1]}.{match[1]}" if outer else match[1])
            return f"{flag} {match[4]}: must be {' or '.join(names)}"
        if match := re.search(r"argument (--[\w.-]+)(?:/\S+)?: expected", message):
            typed = (word for word in argv if normalized(word).startswith((match[1] + ".", match[1] + "=")))
            return f"{next(typed, match[1])} requires a value"
        if match := re.search(r"argument (--[\w.-]+)/\S+: invalid _boolean_type value: '(.*)'", message):
            return f"{match[1]} {match[2]}: must be true or false, or have no value"
        return message if len(message) <= 300 else f"{message[:300]}..."


class _HelpFormatter(DefaultHelpFormatter):
    """Show defaults, but no Python types: the text of a flag describes its value."""

    def _get_type_str(self, action: Any) -> None:
        return None

    def _format_action_invocation(self, action: Any) -> str:
        if isinstance(action, ActionYesNo):  # --no-FLAG says nothing new where the default is False
            return ", ".join(action.option_strings if action.default else action.option_strings[:1])
        return super()._format_action_invocation(action)

    def _get_help_string(self, action: Any) -> str:
        text = super()._get_help_string(action)
        if action.default is None or "(default: " in (action.help or ""):
            return text.replace(" (default: %(default)s)", "")
        return text


def build(settings: type[S], values: Namespace) -> S:
    """Make a settings dataclass from what `CommandParser.parse` returned."""
    return settings(**{field.name: values[field.name] for field in fields(settings) if field.name in values})  # type: ignore[arg-type]  # a dataclass


def flag_of(name: str) -> str:
    """Return the flag of a field, as help and errors show it: `--max-steps`, `--model.hidden_size`."""
    name, dot, part = name.partition(".")
    return f"--{name.replace('_', '-')}{dot}{part.replace('-', '_')}"


def normalized(argument: str) -> str:
    """Return `--max_steps=3` as `--max-steps=3`; anything but a flag is unchanged."""
    flag, equals, value = argument.partition("=")
    return f"{flag_of(flag[2:])}{equals}{value}" if flag.startswith("--") else argument


def program(command: str) -> str:
    """Return how this process started a command: `python -m pretrain` or `hf-tiny-transformer pretrain`."""
    started = Path(sys.argv[0])
    by_module = started.name == "__main__.py" and started.parent.name == command.split()[0]
    return f"{'python -m' if by_module else 'hf-tiny-transformer'} {command}"


def _metavar(name: str, hint: Any) -> str:
    """Return what help shows for a value: its choices, N for a number, else the name of the field."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if get_origin(kinds[0]) is Literal:
        return f"{{{','.join(get_args(kinds[0]))}}}"
    if kinds[0] is bool:
        return "{true,false}"
    return "N" if kinds[0] in (int, float) else name.upper()


def _item_type(hint: Any) -> type[Any] | None:
    """Return the item type of `list[X]` or `list[X] | None`; None for any other hint."""
    for part in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if get_origin(part) is list:
            return get_args(part)[0]
    return None
