"""Runs the project's commands inside the test's process."""

from hf_tiny_transformer.cli import main
from hf_tiny_transformer.common.errors import run_command


def run(*argv: object) -> int:
    """Return the exit status of `hf-tiny-transformer ARGV`."""
    return run_command(lambda: main([str(word) for word in argv]))


def fails(capsys, *argv: object, status: int = 2) -> str:
    """Return the one line on stderr of a command that must fail with `status`."""
    capsys.readouterr()
    assert run(*argv) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error
