"""Many sessions over few kernels, as ``make sessions`` has them, but fewer."""

from __future__ import annotations

import pytest
from rich.progress import Progress

from benchmarks.sessions import measure

SESSIONS, KERNELS = 6, 3


@pytest.mark.one_runtime
async def test_every_session_finds_its_own_state(runtime: str) -> None:
    """DataFrame, figure, class and files: each its own, none another's, whichever kernel it wakes in."""
    with Progress(disable=True) as progress:
        found = await measure(runtime, SESSIONS, KERNELS, progress)
    assert found.wrong == []
    assert len(found.wakes) >= SESSIONS - KERNELS
