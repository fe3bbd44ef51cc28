"""Runs code in a Python that has transformers and torch, but not this package."""

import os
import subprocess
import sys
from pathlib import Path

PRELUDE = """
import importlib.util, logging, pathlib, sys
logging.getLogger("DeepSpeed").disabled = True  # where it is installed, Accelerate imports it, and it greets on stdout
sys.path[:] = [place for place in sys.path if not (pathlib.Path(place) / "hf_tiny_transformer").exists()]
assert importlib.util.find_spec("hf_tiny_transformer") is None
"""


def run_outside(code: str, *arguments: object, cache: Path) -> str:
    """What `code` prints, run with `arguments` in sys.argv[1:]; it fails where the code does, or warns.

    Args:
        cache: where transformers may put the code of checkpoints.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-c", PRELUDE + code, *map(str, arguments)],  # -I: no PYTHONPATH, no working directory
        cwd=cache,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cache / "modules")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
