"""`python -m finetune`."""

import os
import sys

# Trainer would spread one small model over all GPUs of the machine and multiply the batch size by their number.
if "RANK" not in os.environ:  # under `accelerate launch` each process has a GPU of its own
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns that it looked for unused parameters and found none

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
