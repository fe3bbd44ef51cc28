"""pytest plugin that writes the outcome of each test as JSON, so that families can be compared by test name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

RESULTS_VARIABLE = "CONFORMANCE_RESULTS"
# The outcome of a test is that of its worst part; pytest counts a test whose subtests are all skipped as passed.
_RANK = {"passed": 0, "skipped": 1, "failed": 2}
_tests: dict[str, dict[str, str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the report of a setup, call, teardown or subtest."""
    seen = _tests.setdefault(report.nodeid.rpartition("::")[2], {"outcome": "passed", "reason": ""})
    if _RANK[report.outcome] > _RANK[seen["outcome"]]:
        if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
            reason = report.longrepr[2].removeprefix("Skipped: ")
        else:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = crash.message if crash else str(report.longrepr)
        seen.update(outcome=report.outcome, reason=" ".join(reason.split())[:300])


def pytest_sessionfinish() -> None:
    """Write the file, unless pytest could not start."""
    if _tests:
        Path(os.environ[RESULTS_VARIABLE]).write_text(json.dumps(_tests), encoding="utf-8")
