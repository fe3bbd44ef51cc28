"""What the benchmarks share: flags from a dataclass, and measurements that need a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from hf_tiny_transformer.common.arguments import CommandParser, build
from hf_tiny_transformer.common.errors import RunError

S = TypeVar("S")


def parse(name: str, description: str, settings: type[S], *, positional: Sequence[str] = ()) -> S:
    """Parse the flags of `python -m benchmarks.NAME` into a settings dataclass; `positional` fields have no flag.

    `description` is the docstring of its module; the help shows the first line.
    """
    parser = CommandParser(f"python -m benchmarks.{name}", description.splitlines()[0])
    parser.add_settings(settings, positional=positional)
    return build(settings, parser.parse(sys.argv[1:]))


def measure_in_process(name: str, *arguments: str) -> Any:
    """Run a benchmark in a new process, and return the JSON that it prints last.

    Peak memory and the settings of the allocator belong to a process, so each side is measured in one of its own.

    Raises:
        RunError: The process failed; it has printed why.
    """
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, stdout=subprocess.PIPE)
    if done.returncode:
        raise RunError(f"{' '.join(command)}: exit status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
