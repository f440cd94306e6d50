"""A short version of ``make soak``: leases with random faults leave nothing behind, and each is told as what it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import growth, soak

LEASES = {"runc": 32, "runsc": 14}


@pytest.mark.alone
async def test_nothing_grows(runtime: str, tmp_path: Path) -> None:
    """Containers, shims, descriptors, threads, tasks and folders are no more in the end than after the first third."""
    seen = await soak(runtime, LEASES[runtime], seed=5, folder=tmp_path, faults=1, parts=3)
    assert seen.untrue == []
    assert seen.lost == []
    # Threads of executors are made as they are needed, up to a fixed number: so few leases do not need all of them.
    assert [grown for grown in growth(seen) if not grown.startswith("threads")] == []
    assert len(seen.samples) == 3
    assert len(seen.faults) >= 13
