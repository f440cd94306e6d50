"""A process that was frozen for so long that another one went on with its session. No engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from orchestrator.errors import NotOwnerError, SessionElsewhereError, SessionEndedError
from orchestrator.kernel.fakecell import FakeCell, Wait
from orchestrator.sessions.session import KernelSession
from tests.unit.sessionworld import Inheritance, World


@pytest.fixture
async def frozen(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path, name="frozen")
    yield world
    await world.close()


@pytest.fixture
async def heir(tmp_path: Path, frozen: World) -> AsyncIterator[World]:
    world = World(tmp_path, name="heir")
    world.owners.dead = {"frozen"}
    frozen.owners.dead = set()
    yield world
    await world.close()


async def taken(frozen: World, heir: World) -> tuple[KernelSession, KernelSession]:
    """Return the session as the frozen process has it, and as its heir has it, woken from a checkpoint."""
    old = await frozen.acquire("a")
    await frozen.run(old)
    await frozen.checkpoint(old)
    await heir.recover(Inheritance())
    new = await heir.acquire("a")
    assert (new.session_id, new.state) == (old.session_id, "live")
    return old, new


CALLS: dict[str, Callable[[World, KernelSession], Awaitable[object]]] = {
    "run": lambda world, session: world.run(session, "2"),
    "checkpoint": lambda world, session: world.checkpoint(session),
}


@pytest.mark.parametrize("call", CALLS)
async def test_the_former_owner_is_refused_and_ends_its_kernel(call: str, frozen: World, heir: World) -> None:
    old, new = await taken(frozen, heir)
    kernel = frozen.kernel_of(old)
    with pytest.raises(NotOwnerError, match="taken over"):
        await CALLS[call](frozen, old)
    await asyncio.sleep(0)
    await frozen.quiet()
    assert (old.state, old.ended, kernel.stopped) == ("ended", "taken_over", True)
    with pytest.raises(SessionEndedError):
        await frozen.run(old)
    with pytest.raises(SessionElsewhereError):
        await frozen.acquire("a")
    await heir.run(new, "3")
    assert [entry["code"] for entry in await new.history()] == ["1", "3"]


async def test_a_cell_that_ends_after_the_takeover_is_not_acknowledged(frozen: World, heir: World) -> None:
    """It counts as interrupted where the session is now."""
    old = await frozen.acquire("a")
    await frozen.run(old)
    await frozen.checkpoint(old)
    loop = FakeCell([Wait(None)])
    frozen.kernel_of(old).cells["loop"] = loop
    running = asyncio.create_task(frozen.run(old, "loop"))
    while old.running_cell is None:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    await heir.recover(Inheritance())
    new = await heir.acquire("a")
    old.interrupt()
    with pytest.raises(NotOwnerError):
        await running
    assert [(entry["code"], entry["result"]["outcome"]) for entry in await new.history()] == [
        ("1", "ok"),
        ("loop", "interrupted"),
    ]


async def test_letting_go_of_what_is_lost_raises_nothing(frozen: World, heir: World) -> None:
    """A kernel that dies, an idle session, a shutdown: what they would write is dropped."""
    old, new = await taken(frozen, heir)
    await frozen.die(old)
    assert new.state == "live"
    record = await heir.row(new.session_id)
    assert record is not None
    assert (record.state, record.owner) == ("live", "heir")
