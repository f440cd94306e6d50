"""The orchestrator is killed at random moments, and nothing is orphaned, lost or run twice."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from tests.faults.crashes import CLEANED, Crashes
from tests.faults.privateengine import PrivateEngine

KILLS = 5


async def test_killed_at_random_moments_nothing_is_lost(engine: PrivateEngine, runtime: str) -> None:
    """No start leaves orphans, and every acknowledged cell and checkpoint survives."""
    with tempfile.TemporaryDirectory(prefix="cb-crash-") as folder:
        crashes = Crashes(Path(folder), runtime, seed=7)
        for _ in range(KILLS):
            await asyncio.to_thread(crashes.crash)
        found = await crashes.judge()
    assert found.clean, found
    assert found.cells > 0
    assert found.slowest < CLEANED
