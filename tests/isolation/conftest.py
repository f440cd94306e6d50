"""One laboratory for each runtime, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from orchestrator.isolation.verification import Laboratory, laboratory
from orchestrator.settings import Settings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(runtime: str) -> AsyncIterator[Laboratory]:
    """Open a laboratory under the runtime, with its bait and its neighbour."""
    async with laboratory(Settings.load(), runtime) as opened:
        yield opened
