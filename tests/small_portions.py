"""`python -m pretrain` that cuts data into portions of 4 kB and shards of 10 documents, and names each shard that it
writes on stderr. With $KILLED_AT it dies, as by kill -9, in the middle of the shard whose path ends so."""

import os
import signal
import sys

from hf_tiny_transformer.runs import run_cli
from pretrain import packing, readers
from pretrain.cli import main

readers.PORTION = 4000
packing.SHARD = 10
write_shard = packing._write_shard


def write(documents, tokenizer, shard):
    name = f"{shard.parent.name}/{shard.name}"
    if name == os.environ.get("KILLED_AT"):
        next(documents)
        os.kill(os.getpid(), signal.SIGKILL)
    write_shard(documents, tokenizer, shard)
    os.write(2, f"wrote {name}\n".encode())  # at once: two processes write there


packing._write_shard = write

if __name__ == "__main__":
    sys.exit(run_cli(main))
