"""Errors that end a command with one line on stderr and an exit status of their own."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130  # what a shell reports for Ctrl-C
EXIT_TERMINATED = 143  # and for SIGTERM
STOPS = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
FORWARDED = 2.0  # seconds in which a launcher repeats to its processes the signal that the terminal sent to all


class RunError(Exception):
    """Ends a run with one line on stderr and the exit status of its class."""

    exit_status = 1


class UserError(RunError):
    """Input that the user can correct. The message states the problem, its file, line or field, and what to do."""

    exit_status = EXIT_BAD_INPUT


class DivergedError(RunError):
    """The loss is not finite or has exploded."""

    exit_status = EXIT_DIVERGED


class StoppedError(BaseException):
    """A signal asked the command to stop. Not an `Exception`, so that nothing takes it for an error of its own."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(f"{signal.Signals(number).name}: {advice}".rstrip(": "))
        self.exit_status = 128 + number


def run_command(main: Callable[[], None]) -> int:
    """Run a command and return its exit status.

    A `RunError` prints one line on stderr and gives its own status, and so do errors of the operating system (2) and
    the signals `STOPS` (128 + number, such as 130 for Ctrl-C). Any other exception is a bug and keeps its traceback.
    """
    try:
        with on_stop():
            main()
    except (RunError, StoppedError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or one_line(error)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def raise_stopped(number: int) -> None:
    """Raise StoppedError."""
    raise StoppedError(number)


@contextmanager
def on_stop(action: Callable[[int], None] = raise_stopped) -> Iterator[None]:
    """Call `action` with the number of the first signal of `STOPS`; a second one ends the process at once.

    Signals that are ignored, as under nohup, stay so.
    """
    first: list[float] = []

    def handle(number: int, frame: object) -> None:
        if not first:
            first.append(time.monotonic())
            action(number)
        elif "RANK" not in os.environ or time.monotonic() > first[0] + FORWARDED:
            os.write(2, b"stopped at once\n")
            os._exit(128 + number)

    handled = STOPS if threading.current_thread() is threading.main_thread() else []
    before = {number: signal.getsignal(number) for number in handled}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_later() -> Iterator[None]:
    """Wait with the reaction to a signal until the block is left, such as a checkpoint that is nearly complete."""
    arrived: list[int] = []
    with on_stop(arrived.append):
        yield
    if arrived:
        os.kill(os.getpid(), arrived[0])


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
    close = difflib.get_close_matches(str(name).replace("-", "_"), spellings, n=1)
    return f" (did you mean {spellings[close[0]]}?)" if close else ""
