"""Started cells that nobody follows any longer, or that are followed late. On a real kernel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from orchestrator.errors import InvalidInputError
from orchestrator.server.directory import Served
from orchestrator.server.native import livecells, livecommands
from orchestrator.server.native.bodies import NewCell
from orchestrator.server.service import Forget
from orchestrator.sessions.kept import Kept
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


async def test_a_client_that_comes_back_too_late_is_told_what_is_gone(served: Served) -> None:
    """One event stands for those that the server has forgotten, with the number of the last of them."""
    code = "import time\nfor n in range(5): print(n, flush=True); time.sleep(0.1)"
    live = await livecells.start(served, NewCell(code=code), patience=None)
    await live.cell.wait(20)
    whole = await followed(live, 0)
    assert [number for number, _ in whole] == list(range(1, len(whole) + 1))
    assert await followed(live, 2) == whole[2:]
    last = len(whole)
    live.cell.forget_events()
    dropped = {"type": "output_dropped", "dropped_bytes": 10, "dropped_messages": last - 3}
    assert await followed(live, 2) == [(last - 1, dropped), whole[-1]]
    assert await followed(live, last - 1) == [whole[-1]]
    assert await followed(live, last) == []
    with pytest.raises(InvalidInputError, match="events"):
        await followed(live, last + 1)


async def test_what_is_forgotten_is_not_found(served: Served) -> None:
    """A cell that the manager forgets, and a command beyond those that the server keeps. What runs stays."""
    live = await livecells.start(served, NewCell(code="1"), patience=None)
    await live.cell.wait(20)
    assert livecells.listed(served) == [live]
    live.cell.forget()
    assert livecells.listed(served) == []
    with pytest.raises(InvalidInputError, match="no cell"):
        livecells.find(served, live.cell.id)

    ended: Kept[Forget] = Kept(most=2, most_bytes=1000)
    commands = [await served.manager.start_command(served.session, ["sleep", "60"])]
    commands += [await served.manager.start_command(served.session, ["true"]) for _ in range(3)]
    for command in commands:
        livecommands.remember(served, command, ended)
    for command in commands[1:]:
        await command.wait(20)
    await asyncio.sleep(0)
    kept = {number for number in range(1, 5) if is_found(served, number)}
    assert len(kept) == 3
    assert commands[0].number in kept
    commands[0].kill()


def is_found(served: Served, number: int) -> bool:
    with contextlib.suppress(InvalidInputError):
        return livecommands.find(served, number).number == number
    return False


async def followed(live: livecells.LiveCell, after: int) -> list[tuple[int, dict[str, Any]]]:
    """Return the cell's numbered events as a client gets them."""
    async with contextlib.aclosing(live.follow(after)) as events:
        return [(number, event) async for number, event in events if number is not None]
