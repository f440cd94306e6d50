"""A session has one owner: of several live processes one has it, and a running one takes over from a dead one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import SessionBusyError, SessionElsewhereError
from orchestrator.store.history import History
from tests.unit.sessionworld import Inheritance, World


@pytest.fixture
async def first(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path, name="first")
    yield world
    await world.close()


@pytest.fixture
async def second(tmp_path: Path, first: World) -> AsyncIterator[World]:
    world = World(tmp_path, name="second")
    world.others["first"] = first
    yield world
    await world.close()


async def test_a_second_process_is_refused_and_learns_who_has_the_session(first: World, second: World) -> None:
    session = await first.acquire("a")
    with pytest.raises(SessionElsewhereError, match=r"process 1 on first") as refused:
        await second.acquire("a")
    assert (refused.value.owner, refused.value.pid, refused.value.host) == ("first", 1, "first")
    assert await first.acquire("a") is session
    await first.acquiring.end("a", "end_session")
    assert (await second.acquire("a")).session_id != session.session_id
    with pytest.raises(SessionElsewhereError):
        await first.acquire("a")


async def test_a_handover_moves_the_session_with_its_state(first: World, second: World) -> None:
    """And the first process gets it back in the same way."""
    session = await first.acquire("a")
    await first.run(session)
    moved = await second.acquire("a", handover=True)
    assert moved.session_id == session.session_id
    assert moved.restored is not None
    assert (session.state, session.previous_end) == ("asleep", "handover")
    first.others["second"] = second
    assert await first.acquire("a", handover=True) is session


@pytest.mark.parametrize("case", ["in use", "not captured", "no answer"])
async def test_a_session_that_cannot_be_handed_over_stays(first: World, second: World, case: str) -> None:
    session = await first.acquire("a")
    if case == "not captured":
        first.kernel_of(session).state.refusal = "no"
    if case == "no answer":
        second.others.clear()
    with (
        session.in_use() if case == "in use" else _nothing(),
        pytest.raises(SessionElsewhereError, match="handed over"),
    ):
        await second.acquire("a", handover=True)
    assert session.state == "live"
    assert await first.acquire("a") is session


async def test_of_processes_that_begin_at_once_one_wins(tmp_path: Path) -> None:
    """Each has its own connection to the store; none has seen another one's row."""
    worlds = [World(tmp_path, name=f"w{number}") for number in range(6)]
    got = await asyncio.gather(*(world.acquire("a") for world in worlds), return_exceptions=True)
    refused = [error for error in got if isinstance(error, BaseException)]
    assert len(refused) == 5
    assert all(isinstance(error, SessionElsewhereError) for error in refused)
    assert len(await worlds[0].store.run(History.sessions_of, "a")) == 1
    for world in worlds:
        await world.close()


async def test_the_second_to_begin_gives_its_kernel_back(first: World, second: World) -> None:
    """The row comes between its look and its own row."""
    session = second.registry.make("a")
    await first.acquire("a")
    kernel, resource = await second.acquiring.lease(None, session.lease_request)
    with pytest.raises(SessionBusyError):
        await session.begin(kernel)
    assert session.state == "ended"
    second.pool.release(resource)
    assert len(await first.store.run(History.sessions_of, "a")) == 1


async def test_a_running_process_continues_a_dead_ones_session_in_its_kernel(first: World, second: World) -> None:
    """When its agent comes: no start is needed. Other agents' sessions come along."""
    session = await first.acquire("a")
    other = await first.acquire("b")
    await first.run(session)
    second.owners.dead = {"first"}
    second.inheritance = Inheritance({session.kernel_id, other.kernel_id})
    continued, also = await asyncio.gather(second.acquire("a"), second.acquire("b"))
    assert (continued.session_id, continued.kernel_id) == (session.session_id, session.kernel_id)
    assert (also.session_id, also.kernel_id) == (other.session_id, other.kernel_id)
    assert [record.owner for record in await second.store.run(History.unended)] == ["second", "second"]
    first.registry.sessions.clear()


@pytest.mark.parametrize("has_checkpoint", [True, False])
async def test_a_running_process_continues_without_the_dead_ones_kernel(
    first: World, second: World, has_checkpoint: bool
) -> None:
    session = await first.acquire("a")
    if has_checkpoint:
        await first.checkpoint(session)
    second.owners.dead = {"first"}
    continued = await second.acquire("a")
    assert (continued.session_id == session.session_id) is has_checkpoint
    assert continued.previous_end == "orchestrator_lost"
    first.registry.sessions.clear()


async def test_what_a_third_process_takes_over_is_refused(first: World, second: World) -> None:
    session = await first.acquire("a")
    second.owners.dead = {"first"}
    second.inheritance = Inheritance(others={session.kernel_id})
    with pytest.raises(SessionElsewhereError, match="has ended"):
        await second.acquire("a")


async def test_a_slow_takeover_costs_an_agent_its_own_timeout(first: World, second: World) -> None:
    await first.acquire("a")
    second.owners.dead = {"first"}
    event = asyncio.Event()

    async def slow() -> None:
        await event.wait()

    second.acquiring.elsewhere.open(second.owners, slow, second._ask)
    with pytest.raises(SessionBusyError):
        await second.acquire("a", timeout=0.05)
    assert (await second.acquire("b", timeout=5.0)).is_awake
    event.set()


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
