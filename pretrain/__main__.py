"""Entry point of `python -m pretrain` and `accelerate launch -m pretrain`."""

import sys

from hf_tiny_transformer.cli import run
from hf_tiny_transformer.common.errors import run_command


def main() -> None:
    """Run the command; its imports, which take seconds, can be interrupted too."""
    run("pretrain", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(run_command(main))
