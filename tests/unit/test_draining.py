"""Draining: a host gives its sessions to others as their calls end, and takes none. No engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import KernelPoolExhaustedError
from orchestrator.kernel.fakecell import FakeCell, Wait
from tests.unit.sessionworld import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


async def test_sessions_sleep_as_their_cells_end_and_none_is_taken(world: World, tmp_path: Path) -> None:
    idle, busy = await world.acquire("idle"), await world.acquire("busy")
    world.kernel_of(busy).cells["wait"] = FakeCell([Wait(0.3)])
    cell = asyncio.create_task(world.run(busy, "wait"))
    await asyncio.sleep(0.05)
    assert await world.hibernation.drain(30.0) == {}
    assert (await cell).outcome == "ok"
    assert (idle.state, busy.state) == ("asleep", "asleep")
    for agent in ("idle", "new"):
        with pytest.raises(KernelPoolExhaustedError) as caught:
            await world.acquire(agent)
        assert caught.value.reason == "draining"
    other = World(tmp_path, name="other")
    assert (await other.acquire("busy")).session_id == busy.session_id
    await other.close()


async def test_what_cannot_go_in_time_stays_and_says_why(world: World) -> None:
    busy, odd = await world.acquire("busy"), await world.acquire("odd")
    world.kernel_of(busy).cells["loop"] = FakeCell([Wait(None)])
    cell = asyncio.create_task(world.run(busy, "loop"))
    world.kernel_of(odd).state.refusal = "it does not want to"
    await asyncio.sleep(0.05)
    assert await world.hibernation.drain(0.5) == {
        busy.session_id: "it is in use",
        odd.session_id: "its state cannot be captured",
    }
    busy.interrupt()
    await cell
    assert (await world.acquire("odd")) is odd, "it goes on here"


async def test_a_drain_that_is_ended_takes_sessions_again(world: World) -> None:
    """The drain that waits for a cell returns, the session keeps its kernel, and a new one gets one."""
    busy = await world.acquire("busy")
    world.kernel_of(busy).cells["loop"] = FakeCell([Wait(None)])
    cell = asyncio.create_task(world.run(busy, "loop"))
    draining = asyncio.create_task(world.hibernation.drain(30.0))
    await asyncio.sleep(0.05)
    world.hibernation.undrain()
    async with asyncio.timeout(10):
        assert await draining == {busy.session_id: "the drain was ended"}
    assert (await world.acquire("new")).is_awake
    busy.interrupt()
    await cell
