"""Entry point of `python -m pretrain` and `accelerate launch -m pretrain`."""

import sys

from hf_tiny_transformer.runs import run_cli

from .cli import main

if __name__ == "__main__":
    sys.exit(run_cli(main))
