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
    """Input that the user can correct.

    The message is one line: what is wrong, in which file, line or field, and what to do.
    """

    exit_status = EXIT_BAD_INPUT


class DivergedError(RunError):
    """The loss is not finite or has exploded."""

    exit_status = EXIT_DIVERGED


class TerminatedError(RunError):
    """SIGTERM arrived and the run is saved."""

    exit_status = EXIT_TERMINATED


def run_command(main: Callable[[], None]) -> int:
    """Run a command and turn its errors into exit statuses.

    A `RunError` prints one line on stderr and gives its own status; Ctrl-C gives 130. Any other exception is a bug and
    keeps its traceback.

    Args:
        main: The command.

    Returns:
        The exit status.
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


def one_line(error: BaseException, limit: int | None = None) -> str:
    """Return an exception's message on one line, or its type's name where the message is empty.

    Args:
        error: Any exception.
        limit: Characters after which the message is cut.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if limit is None or len(text) <= limit else f"{text[:limit]}..."


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type's name where the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggestion(name: str, known: Sequence[str]) -> str:
    """Return ` (did you mean X?)` for the closest known name, or nothing."""
    close = difflib.get_close_matches(name.replace("-", "_"), [k.replace("-", "_") for k in known], n=1, cutoff=0.6)
    if not close:
        return ""
    found = next(k for k in known if k.replace("-", "_") == close[0])
    return f" (did you mean {found}?)"
