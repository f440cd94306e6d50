"""Which sessions sleep, when, and what happens when their state cannot be captured. No engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from orchestrator.errors import KernelPoolExhaustedError, SessionEndedError
from orchestrator.kernel.fakecell import FakeCell, Wait
from orchestrator.outcome import Outcome
from orchestrator.policy.sections import Group, Sessions
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import History
from tests.unit.sessionworld import World

LOST = {"name": "f", "kind": "file", "reason": "it is open"}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def sweeping(world: World) -> AsyncIterator[None]:
    """Run the sweep for idle sessions."""
    task = asyncio.create_task(world.hibernation.sleep_when_idle())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await world.close()


async def test_an_idle_session_sleeps(tmp_path: Path) -> None:
    """One that is used, or whose cell runs, does not."""
    world = World(tmp_path, idle_s=0.05)
    async with sweeping(world):
        idle, used = await world.acquire("idle"), await world.acquire("used")
        with used.in_use():
            await until(lambda: idle.state == "asleep")
            assert used.state == "live"
        assert idle.previous_end == "idle"
        await until(lambda: used.state == "asleep")


async def test_an_idle_session_ends_where_the_policy_has_no_hibernation(tmp_path: Path) -> None:
    """Its state is lost, as the policy wants it; no other has to make room."""
    world = World(tmp_path, idle_s=0.05, sessions=Sessions(hibernate=False))
    async with sweeping(world):
        idle = await world.acquire("idle")
        await until(lambda: idle.state == "ended")
        assert idle.ended == "idle"
        assert not world.hibernation.make_room()


async def test_the_least_recently_used_session_makes_room(tmp_path: Path) -> None:
    """There are more agents than kernels; the spared one keeps its own."""
    world = World(tmp_path, max_kernels=2)
    first, second = await world.acquire("first"), await world.acquire("second")
    third = await world.acquire("third")
    assert [session.state for session in (first, second, third)] == ["asleep", "live", "live"]
    assert first.previous_end == "evicted"
    made = await world.checkpoint(third)
    await world.restore(third, made)
    assert (second.state, third.state) == ("asleep", "live")
    await world.close()


async def test_a_group_at_its_quota_gives_up_one_of_its_own(tmp_path: Path) -> None:
    """Other groups' sessions keep their kernels."""
    world = World(tmp_path, max_kernels=4, groups={"small": Group(quota=1)})
    other = await world.acquire("other")
    first = await world.acquire("first", group="small")
    second = await world.acquire("second", group="small")
    assert [session.state for session in (other, first, second)] == ["live", "asleep", "live"]
    await world.close()


async def test_a_session_that_cannot_sleep_lets_another_one_go(tmp_path: Path) -> None:
    """The policy keeps what no checkpoint can hold, until its next cell."""
    world = World(tmp_path, max_kernels=2, sessions=Sessions(incomplete="keep"))
    first, second = await world.acquire("first"), await world.acquire("second")
    world.kernel_of(first).state.lost = [LOST]
    third = await world.acquire("third")
    assert [session.state for session in (first, second, third)] == ["live", "asleep", "live"]
    assert "no checkpoint can hold f (file: it is open)" in (await world.run(first)).warnings[0]
    world.kernel_of(first).state.lost = []
    assert await world.hibernation.hibernate(first, Outcome.HIBERNATE)
    await world.close()


@pytest.mark.parametrize(("incomplete", "state"), [("keep", "live"), ("evict", "ended")])
async def test_a_state_that_cannot_be_captured(tmp_path: Path, incomplete: str, state: str) -> None:
    """The policy decides: the session keeps its kernel, or loses its state."""
    world = World(tmp_path, sessions=Sessions.model_validate({"incomplete": incomplete}))
    session = await world.acquire("a")
    world.kernel_of(session).state.refusal = "no"
    assert not await world.hibernation.hibernate(session, Outcome.HIBERNATE)
    assert session.state == "live"
    assert "its state cannot be captured" in (await world.run(session)).warnings[0]
    assert not await world.hibernation.hibernate(session, Outcome.IDLE)
    assert session.state == state
    await world.close()


async def test_an_eviction_of_a_state_that_cannot_be_captured_is_reported(tmp_path: Path) -> None:
    """The session continues from its newest checkpoint, and its next result says why."""
    world = World(tmp_path)
    session = await world.acquire("a")
    await world.checkpoint(session)
    world.kernel_of(session).state.refusal = "no"
    assert not await world.hibernation.hibernate(session, Outcome.EVICTED)
    assert session.state == "asleep"
    again = await world.acquire("a")
    assert any("could not be captured" in warning for warning in (await world.run(again)).warnings)
    await world.close()


async def test_a_session_that_is_used_meanwhile_does_not_sleep(tmp_path: Path) -> None:
    """Whether its capture succeeds or fails."""
    world = World(tmp_path)
    session = await world.acquire("a")
    assert not await world.hibernation.hibernate(KernelSession("s", "k", "a"), Outcome.IDLE)
    for refusal in ("", "no"):
        world.kernel_of(session).state.refusal = refusal
        sleeping = asyncio.create_task(world.hibernation.hibernate(session, Outcome.IDLE))
        await asyncio.sleep(0)
        with session.in_use():
            assert not await sleeping
        assert session.state == "live"
        sleeping = asyncio.create_task(world.hibernation.hibernate(session, Outcome.EVICTED))
        await asyncio.sleep(0)
        with session.in_use():  # shorter than the capture: what it wrote would be lost
            await asyncio.sleep(0)
        assert not await sleeping
        assert session.state == "live"
    with session.in_use():
        assert not await world.hibernation.hibernate(session, Outcome.IDLE)
    world.kernel_of(session).die()
    assert not await world.hibernation.hibernate(session, Outcome.IDLE)
    await world.close()


async def test_a_store_that_refuses_a_state_is_offered_it_again_later(tmp_path: Path) -> None:
    """The session keeps its kernel, and says why; the caller that wanted it waits in vain."""
    world = World(tmp_path, max_kernels=1)
    session = await world.acquire("a")
    world.store.refuses = (History.add_checkpoint,)
    with pytest.raises(KernelPoolExhaustedError):
        await world.acquire("b", 0.1)
    assert session.is_awake
    world.store.refuses = ()
    assert "cannot be written" in (await world.run(session)).warnings[0]
    assert (await world.acquire("b")).state == "live"
    assert session.state == "asleep"
    await world.close()


async def test_an_eviction_without_hibernation_leaves_a_used_session(tmp_path: Path) -> None:
    """Somebody came back before it was its turn."""
    world = World(tmp_path, idle_s=0.05, sessions=Sessions(hibernate=False))
    session = await world.acquire("a")
    task = asyncio.create_task(world.hibernation.sleep_when_idle())
    await asyncio.sleep(0.04)
    with session.in_use():
        await asyncio.sleep(0.1)
        assert session.state == "live"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await world.close()


async def closed(
    tmp_path: Path, prepare: Callable[[World, KernelSession], Awaitable[None]], keep: bool
) -> KernelSession:
    world = World(tmp_path)
    session = await world.acquire("a")
    await prepare(world, session)
    await world.hibernation.close(keep=keep)
    world.store.refuses = ()
    record = await world.row(session.session_id)
    assert record is not None
    assert record.state == ("live" if session.state == "asleep" and session.previous_end is None else session.state)
    await world.close()
    return session


async def nothing(_world: World, _session: KernelSession) -> None: ...


@pytest.mark.parametrize(("keep", "state"), [(True, "asleep"), (False, "ended")])
async def test_a_shutdown_keeps_the_sessions_that_it_is_told_to(tmp_path: Path, keep: bool, state: str) -> None:
    """Others end."""
    session = await closed(tmp_path, nothing, keep)
    assert (session.state, session.ended or session.previous_end) == (state, "shutdown")


async def test_a_shutdown_keeps_a_session_that_has_a_checkpoint(tmp_path: Path) -> None:
    """It captures its newest state first."""

    async def checkpoint(world: World, session: KernelSession) -> None:
        await world.checkpoint(session)

    assert (await closed(tmp_path, checkpoint, keep=False)).state == "asleep"


async def test_a_shutdown_leaves_a_kernel_whose_state_cannot_be_written(tmp_path: Path) -> None:
    """Its kernel runs on for the next start."""

    async def refuse(world: World, _session: KernelSession) -> None:
        world.store.refuses = (History.add_checkpoint,)

    session = await closed(tmp_path, refuse, keep=True)
    assert (session.state, session.previous_end) == ("asleep", None)


async def test_a_shutdown_ends_a_session_whose_state_cannot_be_captured(tmp_path: Path) -> None:
    """It has no checkpoint to wake from."""

    async def refuse(world: World, session: KernelSession) -> None:
        world.kernel_of(session).state.refusal = "no"

    assert (await closed(tmp_path, refuse, keep=True)).ended == "shutdown"


async def test_a_shutdown_reports_a_store_that_cannot_be_read(tmp_path: Path) -> None:
    """It continues with the other sessions."""
    world = World(tmp_path)
    await world.acquire("a")
    world.store.refuses = (History.checkpoints_of,)
    await world.hibernation.close(keep=False)
    world.store.refuses = ()
    await world.close()


async def test_a_shutdown_waits_for_a_cell_and_refuses_those_behind_it(tmp_path: Path) -> None:
    """The running cell ends within its grace period; what waits for its turn is refused."""
    world = World(tmp_path)
    session = await world.acquire("a")
    world.kernel_of(session).cells["work"] = FakeCell([Wait(0.1)])
    running = asyncio.create_task(world.run(session, "work"))
    await asyncio.sleep(0.02)
    waiting = asyncio.create_task(world.run(session, "never"))
    await asyncio.sleep(0.02)
    await world.close(keep=True)
    assert (await running).outcome == "ok"
    with pytest.raises(SessionEndedError):
        await waiting
    assert session.state == "asleep"
