"""Protects the promises of docs/reliability.md by a few cases of `make faults`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["killed_at_a_call", "full_disk", "flipped_bit", "stopped", "two_at_once"])
def test_a_run_survives(fault):
    command = [sys.executable, "-m", "tests.faults", "--dry", "--cases", "1", "--subjects", "2", "--only", fault]
    variables = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
