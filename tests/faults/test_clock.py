"""The wall clock steps by an hour, forward and back, and no deadline or order changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fakeclock import run_stepping


@pytest.fixture(autouse=True)
def audit_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLBLOCK_AUDIT_LOG", str(tmp_path / "audit.jsonl"))


@pytest.mark.one_runtime
def test_no_deadline_moves(tmp_path: Path, runtime: str) -> None:
    """Cells, callers at a full pool, and calls to the engine end at their limits."""
    run_stepping("tests.faults.stepping", "deadlines", runtime, folder=tmp_path)


def test_the_idle_sleep_in_their_time(tmp_path: Path) -> None:
    """An idle session hibernates neither at once nor an hour late."""
    run_stepping("tests.faults.stepping", "idleness", "runc", folder=tmp_path)


def test_what_is_newest_stays_so(tmp_path: Path) -> None:
    """A session wakes from its last checkpoint, cells and audit log keep their order, and nothing is deleted."""
    run_stepping("tests.faults.stepping", "order", "runc", folder=tmp_path)


def test_memory_ends_are_told(tmp_path: Path, runtime: str) -> None:
    """An out-of-memory kill is reported although the engine's clock differs."""
    run_stepping("tests.faults.stepping", "memory", runtime, folder=tmp_path)
