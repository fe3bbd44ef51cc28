"""The sub-commands that train nothing, and the parser of their flags."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from itertools import pairwise
from typing import NoReturn

from hf_tiny_transformer.runs import UserError

Command = Callable[[list[str]], None]


def find_command(argv: list[str]) -> Command | None:
    """What `argv` asks for, to be called with it; None where that is fine-tuning."""
    if argv[:1] == ["predict"]:
        from .predict.run import main

        return main
    if "--task=blimp" in argv or ("--task", "blimp") in pairwise(argv):
        from .zero_shot.cli import main

        return main
    return None


class CommandParser(argparse.ArgumentParser):
    """argparse that ends in one line of ours, and takes no shortened flags."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(prog=program, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raises:
        UserError: always, with argparse's message, which names the flag.
        """
        raise UserError(f"{message.removeprefix('argument ')}; see {self.prog} --help")


def at_least(least: int) -> Callable[[str], int]:
    """A type for `add_argument`: whole numbers from `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = -math.inf
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number, at least {least}")
        return value

    return parse
