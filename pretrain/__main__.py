"""Entry point of `python -m pretrain` and `accelerate launch -m pretrain`."""

import sys

from hf_tiny_transformer.cli import run
from hf_tiny_transformer.common.errors import run_command

if __name__ == "__main__":
    sys.exit(run_command(lambda: run("pretrain", sys.argv[1:])))
