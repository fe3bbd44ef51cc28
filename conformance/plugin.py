"""pytest plugin: writes what became of each test as JSON, so that two families can be compared by test name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

RESULTS_VARIABLE = "CONFORMANCE_RESULTS"
# a test is what the worst of its parts (setup, subtests, ...) is; pytest counts one whose subtests all skip as passed
_RANK = {"passed": 0, "skipped": 1, "failed": 2}


def pytest_configure(config: pytest.Config) -> None:
    """Starts the record."""
    config.pluginmanager.register(Recorder(Path(os.environ[RESULTS_VARIABLE])))


class Recorder:
    """Collects outcome and reason per test name, and writes them when the session ends."""

    def __init__(self, path: Path):
        self.path = path
        self.tests: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One report for each of setup, call and teardown, and for each subtest."""
        name = report.nodeid.rpartition("::")[2]
        seen = self.tests.setdefault(name, {"outcome": "passed", "reason": ""})
        if _RANK[report.outcome] > _RANK[seen["outcome"]]:
            self.tests[name] = {"outcome": report.outcome, "reason": _reason(report)}

    def pytest_sessionfinish(self) -> None:
        """Absent when pytest could not even start: the caller then shows what it printed."""
        if self.tests:
            self.path.write_text(json.dumps(self.tests), encoding="utf-8")


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        text = report.longrepr[2].removeprefix("Skipped: ")
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else str(report.longrepr)
    return " ".join(text.split())[:300]
