"""Protects the one argument parser: flags from a dataclass, either spelling, one-line errors with suggestions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from hf_tiny_transformer.common.arguments import CommandParser, build, program
from hf_tiny_transformer.common.errors import UserError, plural, suggestion


@dataclass
class Part:
    """A part of a test."""

    size: int


@dataclass(frozen=True)
class Settings:
    """Settings of a test.

    Args:
        runs: Directories.
        learning_rate: Peak of the schedule.
        max_steps: Steps to train.
        device: Where to run.
        resume: Whether to continue.
        examples: Texts to show.
        parts: Parts of it.
    """

    runs: list[Path]
    learning_rate: float
    max_steps: int | None = None
    device: Literal["cpu", "gpu"] = "cpu"
    resume: bool = False
    examples: list[str] = field(default_factory=lambda: ["a", "b"])
    parts: list[Part] = field(default_factory=list)


def parse(*argv: str) -> Settings:
    parser = CommandParser("test", "A test.")
    parser.add_settings(Settings, positional=["runs"])
    return build(Settings, parser.parse(argv))


def test_values_have_the_types_of_the_fields():
    assert parse("x", "y", "--learning-rate=1e-3") == Settings([Path("x"), Path("y")], 1e-3)
    flags = ("--learning_rate", "2", "--max-steps", "5", "--device=gpu", "--resume", "--examples", "b", "c")
    assert parse("x", *flags) == Settings([Path("x")], 2.0, 5, "gpu", True, ["b", "c"])
    assert parse("x", "--learning-rate", "2", "--max-steps", "null", "--resume=false") == Settings([Path("x")], 2.0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["x"], "--learning-rate is required"),
        (["--learning-rate=1"], "runs is required"),
        (["x", "--lerning-rate=1"], "unknown argument --lerning-rate=1 (did you mean --learning-rate?)"),
        (["x", "--lerning_rate", "1"], "unknown argument --lerning_rate (did you mean --learning-rate?)"),
        (["x", "--learning-rate=1", "--print_shtab"], "unknown argument --print_shtab; see"),
        (["x", "--learning_rate=1", "--parts.size", "big"], "--parts.size big: must be a whole number"),
        (["x", "--learning-rate=1", "--parts.help"], "--parts.help requires a value"),
        (["x", "--learning-rate=1", "--parts=[{siz: 3}]"], "--parts: unknown field siz (did you mean size?)"),
        (["x", "--learning-rate=fast"], "--learning-rate fast: must be a number"),
        (["x", "--learning-rate=1", "--max-steps", "1.5"], "--max-steps 1.5: must be a whole number or null"),
        (["x", "--learning-rate=1", "--device=tpu"], "--device tpu: must be one of cpu, gpu"),
        (["x", "--learning-rate"], "--learning-rate requires a value"),
        (["x", "--learning-rate=1", "--resume=maybe"], "--resume maybe: must be true or false"),
        (["x", "--learning=1"], "unknown argument --learning=1"),
    ],
)
def test_bad_arguments_are_one_line(argv, message):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert str(caught.value).startswith(message) and str(caught.value).endswith("; see test --help")
    assert "\n" not in str(caught.value)


def test_help_comes_from_the_docstring(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "Peak of the schedule. (required)" in text and "Where to run. (default: cpu)" in text
    assert text.startswith("usage: test RUNS ... --learning-rate N [OPTIONS] ")
    assert "--device {cpu,gpu} Where" in text and "--resume Whether" in text and "show. (default: a b)" in text
    assert not any(noise in text for noise in ("<class", "null", "true", ".help", "--parts+", "shtab", "max_steps"))


@pytest.mark.parametrize(
    ("started", "shown"),
    [
        ("/a/pretrain/__main__.py", "python -m pretrain"),
        ("/bin/hf-tiny-transformer", "hf-tiny-transformer pretrain"),
        ("/a/hf_tiny_transformer/__main__.py", "hf-tiny-transformer pretrain"),
    ],
)
def test_the_usage_line_is_how_the_command_was_started(started, shown, monkeypatch):
    monkeypatch.setattr("sys.argv", [started])
    assert program("pretrain") == shown


def test_plurals():
    assert [plural(count, "row") for count in (0, 1, 1234)] == ["0 rows", "1 row", "1,234 rows"]


def test_a_suggestion_is_close():
    assert suggestion("fine-tune", ["finetune", "pretrain"]) == " (did you mean finetune?)"
    assert suggestion("quux", ["finetune", "pretrain"]) == ""
