"""Protects the command line: one table of commands, imported when needed, and one line for every mistake."""

import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
from commands import fails, run

from hf_tiny_transformer import cli
from hf_tiny_transformer.common.errors import DivergedError, RunError, StoppedError, run_command


def test_help_lists_every_command(capsys):
    assert run("--help") == run() == 0
    printed = capsys.readouterr().out
    for command, (_, text) in cli.COMMANDS.items():
        assert any(line.split(maxsplit=1) == [command, text] for line in printed.splitlines())
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == version("hf-tiny-transformer")


@pytest.mark.parametrize("command", ["attend", "export", "import", "verify", "push"])
def test_each_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as caught:
        run(command, "--help")
    assert caught.value.code == 0 and f"usage: hf-tiny-transformer {command}" in capsys.readouterr().out
    assert f"see hf-tiny-transformer {command} --help" in fails(capsys, command, "--no-such-flag")


def test_completion_knows_commands_and_flags(capsys, monkeypatch):
    monkeypatch.setattr(cli, "COMMANDS", {name: cli.COMMANDS[name] for name in ("export", "push")})
    assert run("--print-completion", "bash") == 0
    script = capsys.readouterr().out
    for words, expected in (("x e", "export"), ("x push --re", "--repo"), ("x export -", "--help --model --format")):
        ask = f"COMP_WORDS=({words}); COMP_CWORD={words.count(' ')}; _hf_tiny_transformer; echo ${{COMPREPLY[*]}}"
        done = subprocess.run(["bash", "-c", script + "\n" + ask], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(expected)
    assert "must be bash or zsh" in fails(capsys, "--print-completion", "fish")


def test_unknown_commands_get_a_suggestion(capsys):
    assert "unknown command finetun (did you mean finetune?)" in fails(capsys, "finetun")
    assert "unknown command transmute; see" in fails(capsys, "transmute")


@pytest.mark.parametrize(("command", "extra"), [("verify", "train"), ("export", "export")])
def test_a_missing_package_is_named_with_its_extra(command, extra, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, command, ("no_such_package.module:main", ""))
    error = fails(capsys, command)
    assert f"{command} requires no_such_package" in error and f"pip install 'hf-tiny-transformer[{extra}]'" in error
    monkeypatch.setitem(cli.COMMANDS, command, ("hf_tiny_transformer.no_such_module:main", ""))
    with pytest.raises(ModuleNotFoundError):  # a bug keeps its traceback
        run(command)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RunError("x"), 1),
        (DivergedError("x"), 3),
        (StoppedError(signal.SIGTERM), 143),
        (StoppedError(signal.SIGHUP, "x"), 129),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 2),
    ],
)
def test_errors_have_their_own_exit_status(error, status, capsys):
    def main() -> None:
        raise error

    assert run_command(main) == status
    assert capsys.readouterr().err.count("\n") == 1


def test_the_process_itself(tmp_path):
    """Exit status and stderr, which the tests above reach only from inside; and which modules it imports."""
    command = [sys.executable, "-m", "hf_tiny_transformer", "import", "--from", str(tmp_path), "--output", "x", "--odd"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown argument --odd") and done.stderr.count("\n") == 1
    code = "import sys, hf_tiny_transformer.cli; print({'jsonargparse', 'datasets', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
