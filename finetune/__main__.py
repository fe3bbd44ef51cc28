"""`python -m finetune`."""

import os
import sys

# Trainer would spread one small model over all GPUs of the machine and multiply the batch size by their number.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
