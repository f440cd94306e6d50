"""The tables and the chart of the benchmarks say which direction is better."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.figures import Report
from benchmarks.plot import draw
from benchmarks.scheduling import compare, report
from benchmarks.servicetimes import ServiceTimes


def figures() -> Report:
    """Return a throughput and a latency of two subjects, in this order."""
    found = Report()
    found.add("cells", {"stock": [4.0], "runc": [2.0]}, baseline="stock", unit="1/s", more_is_better=True)
    found.add("lease", {"stock": [4.0], "runc": [2.0]}, baseline="stock")
    return found


def test_each_table_says_which_direction_is_better(capsys: pytest.CaptureFixture[str]) -> None:
    """The title of a table contains the direction of its measure."""
    figures()
    printed = capsys.readouterr().out
    assert "cells, in 1/s (higher is better)" in printed
    assert "lease, in ms (lower is better)" in printed


def test_the_chart_keeps_both_directions_apart(tmp_path: Path) -> None:
    """Figures of which lower values are better come first, and each group has a heading."""
    draw(figures(), tmp_path / "chart.svg", "stock")
    texts = re.findall(r">([^<>]+)</text>", (tmp_path / "chart.svg").read_text())
    labels = [text for text in texts if text.endswith(("better", "runc"))]
    assert labels == ["lower is better", "lease: runc", "higher is better", "cells: runc"]


def test_the_scheduling_report_keeps_directions_apart() -> None:
    """Fairness and utilisation, the waits, and the estimates are in tables of their own."""
    screen = io.StringIO()
    times = ServiceTimes(start=[0.5], cell=[0.1], end=[0.2])
    report(compare(200, 10, 4, 1, times), Console(file=screen, width=120))
    _, higher, lower, exact = re.split(r"higher is better|lower is better|1 is exact", screen.getvalue())
    assert ("fairness" in higher, "wait p50 s" in higher) == (True, False)
    assert ("wait p50 s" in lower, "starved" in lower, "estimate" in lower) == (True, True, False)
    assert "estimate p50" in exact
