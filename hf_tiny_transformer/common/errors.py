"""Errors that end a command with one line on stderr and an exit status of their own."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130  # what a shell reports for Ctrl-C
EXIT_TERMINATED = 143  # and for SIGTERM


class RunError(Exception):
    """Ends a run with one line on stderr and the exit status of its class."""

    exit_status = 1


class UserError(RunError):
    """Input that the user can correct. The message states the problem, its file, line or field, and what to do."""

    exit_status = EXIT_BAD_INPUT


class DivergedError(RunError):
    """The loss is not finite or has exploded."""

    exit_status = EXIT_DIVERGED


class TerminatedError(RunError):
    """SIGTERM arrived and the run is saved."""

    exit_status = EXIT_TERMINATED


def run_command(main: Callable[[], None]) -> int:
    """Run a command and return its exit status.

    A `RunError` prints one line on stderr and gives its own status; Ctrl-C gives 130. Any other exception is a bug and
    keeps its traceback.
    """
    try:
        main()
    except RunError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


def one_line(error: BaseException, limit: int = sys.maxsize) -> str:
    """Return an exception's message on one line of at most `limit` characters, or its type's name if it is empty."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type's name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def plural(count: int, noun: str) -> str:
    """Return `1 file` or `1,234 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return ` (did you mean X?)` for the closest known name, or nothing."""
    spellings = {each.replace("-", "_"): each for each in known}
    close = difflib.get_close_matches(name.replace("-", "_"), spellings, n=1)
    return f" (did you mean {spellings[close[0]]}?)" if close else ""
