"""Entry point of `python -m pretrain` and `accelerate launch -m pretrain`."""

import sys

from hf_tiny_transformer.common.errors import run_command

from .cli import main

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
