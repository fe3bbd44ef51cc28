"""`python -m pretrain --compile true` without generated code; prints how often gradients are reduced."""

import sys
from functools import partialmethod

import torch
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from hf_tiny_transformer.common.errors import run_command
from hf_tiny_transformer.common.processes import say
from pretrain.cli import main

reduced = []


def counting_hook(group: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Count the buckets, of which a tiny model has one; `no_sync` skips the hook."""
    reduced.append(bucket)
    return allreduce_hook(group, bucket)


class CountingDDP(DistributedDataParallel):
    """Accelerate wraps the model in this class."""

    def __init__(self, *arguments: object, **options: object):
        super().__init__(*arguments, **options)
        self.register_comm_hook(None, counting_hook)


if __name__ == "__main__":
    torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend="eager")
    torch.nn.parallel.DistributedDataParallel = CountingDDP
    status = run_command(lambda: main([*sys.argv[1:], "--compile", "true"]))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    say(f"{graphs} graphs, gradients reduced {len(reduced)} times")
    sys.exit(status)
