"""Runs pytest on one family in a process of its own and reads what the plugin recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .families import FAMILY_VARIABLE
from .fetch import STAND_INS
from .plugin import RESULTS_VARIABLE

REPOSITORY = Path(__file__).parents[1]
SECONDS_PER_TEST = 600  # a hang, whatever the machine


@dataclass(frozen=True)
class FamilyResult:
    """What became of one family's tests.

    Args:
        tests: name -> outcome and reason, as `plugin.py` writes it.
        log: pytest's whole output.
    """

    family: str
    tests: dict[str, dict[str, str]]
    seconds: float
    log: Path

    def names(self, outcome: str) -> list[str]:
        """The tests that `passed`, `failed` or were `skipped`."""
        return sorted(name for name, test in self.tests.items() if test["outcome"] == outcome)

    def __str__(self) -> str:
        counts = Counter(test["outcome"] for test in self.tests.values())
        return f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"


def run_family(family: str, tests_folder: Path) -> FamilyResult:
    """Raises:
    RuntimeError: pytest could not start; holds the end of what it printed.
    """
    log = tests_folder / "logs" / f"{family}.txt"
    log.parent.mkdir(exist_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, log.open("w", encoding="utf-8") as stream:
        results = Path(scratch) / "results.json"
        subprocess.run(
            _command(),
            cwd=REPOSITORY,
            env=_environment(family, tests_folder, results),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        if not results.is_file():
            raise RuntimeError(f"pytest could not test {family}:\n{log.read_text(encoding='utf-8')[-3000:]}")
        tests = json.loads(results.read_text(encoding="utf-8"))
    return FamilyResult(family, tests, time.monotonic() - start, log)


def _command() -> list[str]:
    pytest = [sys.executable, "-m", "pytest", "conformance/suite.py", "-p", "conformance.plugin"]
    # the settings in pyproject.toml are for our own tests; upstream's have marks that we do not list
    return [*pytest, "-o", "addopts=", "-p", "no:cacheprovider", "--disable-warnings", f"--timeout={SECONDS_PER_TEST}"]


def _environment(family: str, tests_folder: Path, results: Path) -> dict[str, str]:
    """CPU only and no network, so that a run says the same on every machine; one thread, as families run at once."""
    path = [str(tests_folder), str(STAND_INS), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "TRANSFORMERS_VERBOSITY": "warning",  # its default: some tests read what is logged
        FAMILY_VARIABLE: family,
        RESULTS_VARIABLE: str(results),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_TEST_DEVICE": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
