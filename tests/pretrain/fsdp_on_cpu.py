"""`python -m pretrain` under FSDP2 on the CPU. Accelerate shards on accelerators only: here the CPU passes for one."""

import sys

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from hf_tiny_transformer.common.errors import run_command
from pretrain.cli import main

if __name__ == "__main__":
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    sys.exit(run_command(lambda: main(sys.argv[1:])))
