"""`python -m pretrain` under DeepSpeed on the CPU. Accelerate keeps it for accelerators; here the CPU is one."""

import os
import sys
from importlib import import_module

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from hf_tiny_transformer.runs import run_cli
from pretrain.cli import main

if __name__ == "__main__":
    os.environ.pop("ACCELERATE_USE_CPU", None)
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # it would be compiled; gloo does too
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
    sys.exit(run_cli(main))
