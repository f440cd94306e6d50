"""A plugin of pytest that writes when each test begins and how it ends, one JSON object a line.

A run is continued by a second one with the same file: the plugin leaves out the tests that the file has.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_FILE = Path(os.environ["CONFORMANCE_OUTCOMES"])
_LONGEST = 3000  # characters of a failure
_reports: list[pytest.TestReport] = []  # of the running test


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the tests that an earlier run has begun."""
    begun = {json.loads(line)["test"] for line in _FILE.read_text().splitlines()}
    items[:] = [item for item in items if item.nodeid not in begun]


def pytest_runtest_logstart(nodeid: str) -> None:
    """Write the begin of a test."""
    _reports.clear()
    _write(test=nodeid, outcome="")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what the set-up, the test itself, and the removal have reported."""
    _reports.append(report)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Write how a test has ended."""
    ends = [report.outcome for report in _reports]
    outcome = next((one for one in ("failed", "skipped") if one in ends), "passed")
    failure = "\n".join(report.longreprtext for report in _reports if report.outcome == "failed")
    _write(test=nodeid, outcome=outcome, failure=failure[-_LONGEST:])


def _write(**fields: str) -> None:
    with _FILE.open("ab", buffering=0) as file:  # one system call: the reader never sees half a line
        file.write(json.dumps(fields).encode() + b"\n")
