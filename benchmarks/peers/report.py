"""Reports the results: tables, figures for JSON, and the peers that are close to Cellblock."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.peers.subjects import Subject
from orchestrator.isolation.measure import quantile

BEHIND = 5.0  # a peer is close if it is less than this many times slower
BASELINE = "Cellblock, runc"
MEASURES = {"execute": "repeated execute of print(1 + 1)", "lease": "from a request for a sandbox to its first result"}

Figures = dict[str, Any]
"""``machine`` and ``subjects``; each subject has median, p10 and p90 in ms, the count and the ratio to BASELINE."""


def figures_of(subjects: Sequence[Subject], engine: str) -> Figures:
    """Return the figures of all subjects.

    Args:
        engine: the engine's version.
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
    """Print the tables, the settings of each subject, and the verdicts."""
    for measure, title in MEASURES.items():
        table = Table(f"{title} (lower is better)", "p50 ms", "p10-p90 ms", f"ratio to {BASELINE}")
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
    """Return a line for each peer that failed or is less than BEHIND times slower, or one line if there is none."""
    lines = []
    for peer in (subject for subject in figures["subjects"] if subject["version"]):
        if failures := peer["failures"]:
            lines.append(f"{peer['name']} failed in {len(failures)} of its turns; the last failure: {failures[-1]}")
        for measure, title in MEASURES.items():
            summary = peer[measure]
            if summary and summary["ratio"] < BEHIND:
                why = peer["close"] or "no reason is known"
                lines.append(f"{peer['name']} takes {summary['ratio']:.1f} times as long ({title}): {why}")
    return lines or [f"Every peer takes at least {BEHIND:g} times as long in both measures."]
