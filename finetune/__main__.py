"""`python -m finetune`."""

import contextlib
import io
import os
import sys

# Trainer would spread one small model over all GPUs of the machine and multiply the batch size by their number.
if "RANK" not in os.environ:  # under `accelerate launch` each process has a GPU of its own
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns that it looked for unused parameters and found none

from hf_tiny_transformer.cli import run
from hf_tiny_transformer.common.errors import run_command
from hf_tiny_transformer.common.processes import is_main


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status; of several processes, one reports errors."""
    arguments = sys.argv[1:] if argv is None else argv
    with contextlib.nullcontext() if is_main() else contextlib.redirect_stderr(io.StringIO()):
        return run_command(lambda: run("finetune", arguments))


if __name__ == "__main__":
    sys.exit(main())
