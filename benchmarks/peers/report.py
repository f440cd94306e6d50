"""What came of it: the table, the JSON figures, and whether every peer is far enough behind."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peers.subjects import Subject
from orchestrator.isolation.measure import quantile

BEHIND = 5.0  # times that a peer is to be behind
BASELINE = "Cellblock, runc"
MEASURES = {"execute": "repeated execute of print(1 + 1)", "lease": "from asking for a sandbox to its first result"}

Figures = dict[str, Any]
"""``machine``; and ``subjects``: for each the median, its p10 and p90 in ms, the count and the ratio to BASELINE."""


def figures_of(subjects: Sequence[Subject], engine: str) -> Figures:
    """Sum up all subjects.

    Args:
        engine: its version.
    """
    base = next(subject for subject in subjects if subject.name == BASELINE)
    return {
        "machine": {
            "cores": os.cpu_count(),
            "engine": engine,
            "kernel": platform.release(),
            "python": platform.python_version(),
        },
        "subjects": [
            {
                "name": subject.name,
                "version": subject.version,
                "settings": subject.settings,
                "close": subject.close,
                "failures": subject.failures,
                "execute": _summary(subject.executes, base.executes),
                "lease": _summary(subject.leases, base.leases),
            }
            for subject in subjects
        ],
    }


def _summary(seconds: list[float], base: list[float]) -> dict[str, float] | None:
    if not seconds or not base:
        return None
    p10, p50, p90 = (1000 * quantile(seconds, share) for share in (0.1, 0.5, 0.9))
    return {
        "p50_ms": p50,
        "p10_ms": p10,
        "p90_ms": p90,
        "count": len(seconds),
        "ratio": p50 / 1000 / quantile(base, 0.5),
    }


def show(figures: Figures, console: Console) -> None:
    """Print the tables, what each subject was given, and who is not far enough behind."""
    for measure, title in MEASURES.items():
        table = Table(title, "p50 ms", "p10-p90 ms", f"ratio to {BASELINE}")
        for subject in figures["subjects"]:
            if subject[measure] or subject["failures"]:
                table.add_row(_title(subject), *_cells(subject[measure]))
        console.print(table)
    for subject in figures["subjects"]:
        console.print(f"{_title(subject)}: {subject['settings']}", markup=False, highlight=False)
    for line in verdicts(figures):
        console.print(line, style="bold", markup=False, highlight=False)


def _title(subject: Figures) -> str:
    return f"{subject['name']} {subject['version']}".strip()


def _cells(summary: dict[str, float] | None) -> tuple[str, str, str]:
    if summary is None:
        return "-", "-", "-"
    spread = f"{summary['p10_ms']:.1f}-{summary['p90_ms']:.1f}"
    return f"{summary['p50_ms']:.1f}", spread, f"{summary['ratio']:.1f}"


def verdicts(figures: Figures) -> list[str]:
    """Return a line for each peer that failed or is less than BEHIND times behind, or one that says that none is."""
    lines = []
    for peer in (subject for subject in figures["subjects"] if subject["version"]):
        if failures := peer["failures"]:
            lines.append(f"{peer['name']} failed in {len(failures)} of its turns, the last time: {failures[-1]}")
        for measure, title in MEASURES.items():
            summary = peer[measure]
            if summary and summary["ratio"] < BEHIND:
                why = peer["close"] or "no reason is known"
                lines.append(f"{peer['name']} is {summary['ratio']:.1f} times behind ({title}): {why}")
    return lines or [f"Every peer is at least {BEHIND:g} times behind on both."]
