"""Cells whose client does not come back. On a real kernel, with a patience of less than 30 s."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest_asyncio

from orchestrator.server.directory import Served
from orchestrator.server.native import livecells
from orchestrator.server.native.bodies import NewCell
from orchestrator.store.history import HandleRecord
from tests.conftest import one_session

ENDLESS = NewCell(code="import time\nwhile True: time.sleep(0.01)")
PATIENCE = 1.0  # seconds


@pytest_asyncio.fixture
async def served() -> AsyncIterator[Served]:
    async with one_session("runc") as (manager, session):
        handle = HandleRecord(session.session_id, "default", "agent", "default", "", "", {}, {}, None, "end")
        yield Served(handle, manager, session)


async def test_a_cell_that_nobody_follows_is_interrupted(served: Served) -> None:
    """One that nobody ever followed, and one whose followers have gone; not one that is followed, or needs nobody."""
    free = await livecells.start(served, NewCell(code="import time; time.sleep(3); 'done'"), patience=None)
    assert (await free.cell.wait(20)).result == "'done'"
    never = await livecells.start(served, ENDLESS, patience=PATIENCE)
    assert (await never.cell.wait(20)).outcome == "interrupted"

    left = await livecells.start(served, ENDLESS, patience=PATIENCE)
    for _ in range(3):  # each comes back in time
        async with contextlib.aclosing(left.follow()) as events:
            assert (await anext(events))[1]["type"] == "cell_started"
            await asyncio.sleep(1.5 * PATIENCE)
    async with contextlib.aclosing(left.follow()) as events, contextlib.aclosing(left.follow()) as others:
        await anext(events)
        await anext(others)
        await others.aclose()
        await asyncio.sleep(1.5 * PATIENCE)
        assert left.cell.is_running
    assert (await left.cell.wait(20)).outcome == "interrupted"
