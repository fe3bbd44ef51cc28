"""The flags of `python -m finetune --task blimp`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from hf_tiny_transformer import foreign_code

from ..commands import CommandParser

PROGRAM = "python -m finetune --task blimp"
MASKINGS = ("word-l2r", "token")


@dataclass(frozen=True)
class ZeroShotSettings:
    """What a run is told; `masking` matters to encoders only."""

    model: str
    output: str
    data: str | None
    masking: str
    from_scratch: bool
    ngram: list[str] | None
    trust_remote_code: bool = False


def main(argv: list[str]) -> None:
    """Raises:
    UserError: a flag is unknown, missing or wrong, or anything that `run_zero_shot` refuses.
    """
    settings = parse_settings(argv)
    import hf_tiny_transformer  # noqa: F401  (registers our model families with the Auto classes)

    from .run import run_zero_shot

    run_zero_shot(settings, command=shlex.join(["python", "-m", "finetune", *argv]))


def parse_settings(argv: list[str]) -> ZeroShotSettings:
    """Raises:
    UserError: an unknown flag, a missing one, or a wrong value.
    """
    parser = CommandParser(
        PROGRAM, "Score BLiMP's minimal pairs: how often is the grammatical sentence the likelier one?"
    )
    parser.add_argument("--task", choices=["blimp"], required=True)
    parser.add_argument("--model", required=True, help="directory or Hub id of a masked or causal language model")
    parser.add_argument("--output", required=True, help="directory for results.json, report.md and predictions.csv")
    parser.add_argument("--data", help="folder of BLiMP's 67 .jsonl files; without it the Hub's nyu-mll/blimp")
    parser.add_argument(
        "--masking",
        choices=MASKINGS,
        default=MASKINGS[0],
        help="of encoders: mask a token with the later ones of its word (default; PLL-word-l2r of Kauf and Ivanova "
        "2023), or the token alone (Salazar et al. 2020)",
    )
    parser.add_argument("--from_scratch", action="store_true", help="the same model with fresh weights: the control")
    parser.add_argument(
        "--ngram",
        nargs="+",
        metavar="TEXT",
        help="text files, or `sample`: score the pairs by counts of their trigrams, too. The model's own training text "
        "makes the baseline that says what it learned beyond neighbouring tokens",
    )
    parser.add_argument("--trust-remote-code", "--trust_remote_code", action="store_true", help=foreign_code.FLAG_HELP)
    values = vars(parser.parse_args(argv))
    values.pop("task")
    return ZeroShotSettings(**values)
