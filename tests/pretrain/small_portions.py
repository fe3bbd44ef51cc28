"""`python -m pretrain` with portions of 4 kB and shards of 10 documents, each named on stderr when it is written.

With $KILLED_AT it dies, as by kill -9, in the middle of that shard.
"""

import os
import signal
import sys

from hf_tiny_transformer.common.errors import run_command
from pretrain.cli import main
from pretrain.data import packed, sources

sources.PORTION = 4000
packed.SHARD = 10
write_shard = packed._write_shard


def write(documents, tokenizer, directory):
    name = f"{directory.parent.name}/{directory.name}"
    if name == os.environ.get("KILLED_AT"):
        next(documents)
        os.kill(os.getpid(), signal.SIGKILL)
    write_shard(documents, tokenizer, directory)
    os.write(2, f"wrote {name}\n".encode())  # unbuffered: two processes write there


packed._write_shard = write

if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
