"""Run code in a Python that has transformers and torch, but not this package."""

import os
import subprocess
import sys
from pathlib import Path

PRELUDE = """
import importlib.util, pathlib, sys
sys.path[:] = [place for place in sys.path if not (pathlib.Path(place) / "hf_tiny_transformer").exists()]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
assert importlib.util.find_spec("hf_tiny_transformer") is None
"""


def run_outside(code: str, *arguments: object, cache: Path) -> str:
    """Return what the code prints; the test fails if the code does.

    Args:
        code: Python.
        arguments: Its sys.argv[1:].
        cache: Where transformers copies the code of checkpoints.
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
