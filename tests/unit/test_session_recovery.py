"""A new process continues the sessions of one that has died. No engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.container.lease import Lease, host_identity
from orchestrator.errors import EngineError, KernelStartError, StoreError
from orchestrator.kernel.fakecell import FakeCell, Wait
from orchestrator.outcome import Outcome
from orchestrator.sessions.owners import HostOwners, lost_sessions
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import History
from tests.unit.sessionworld import Inheritance, World


@pytest.fixture
async def dead(tmp_path: Path) -> KernelSession:
    """A session of a process that has died while a cell ran in it; it has no checkpoint."""
    world = World(tmp_path, name="dead")
    session = await world.acquire("a")
    await world.run(session)
    world.kernel_of(session).cells["loop"] = FakeCell([Wait(None)])
    task = asyncio.create_task(world.run(session, "loop"))
    while session.running_cell is None:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    await world.crash()
    world.kernel_of(session).die()
    await asyncio.gather(task, return_exceptions=True)
    return session


@pytest.fixture
async def heir(tmp_path: Path, dead: KernelSession) -> AsyncIterator[World]:
    world = World(tmp_path, name="heir", max_kernels=1)
    world.owners.dead = {"dead"}
    yield world
    await world.close()


async def state_of(world: World, session: KernelSession) -> tuple[str, str | None, str | None]:
    record = await world.row(session.session_id)
    assert record is not None
    return record.state, record.owner, record.end_reason


async def test_a_kernel_that_lives_is_adopted(heir: World, dead: KernelSession) -> None:
    """The running cell is recorded as interrupted, and the agent is told with the next result."""
    recovery = await heir.recover(Inheritance({dead.kernel_id}))
    assert (recovery.sessions, recovery.containers) == ((dead.session_id,), 4)
    assert heir.registry.inherited == {dead.session_id}
    session = await heir.acquire("a")
    assert (session.session_id, session.kernel_id, session.state) == (dead.session_id, dead.kernel_id, "live")
    assert not heir.registry.inherited
    assert [entry["result"]["outcome"] for entry in session.execution_history] == ["ok", "interrupted"]
    assert "while cell 2 ran" in (await heir.run(session)).warnings[0]
    assert await state_of(heir, dead) == ("live", "heir", None)


@pytest.mark.parametrize("case", ["gone", "does not start", "dies"])
async def test_a_session_without_kernel_and_checkpoint_has_ended(heir: World, dead: KernelSession, case: str) -> None:
    """Whether the kernel is gone, cannot be adopted, or dies as it is."""
    inheritance = Inheritance(set() if case == "gone" else {dead.kernel_id})
    inheritance.dies = case == "dies"
    if case == "does not start":
        inheritance.failure = KernelStartError("it does not answer.", cause="timeout")
    await heir.recover(inheritance)
    assert await state_of(heir, dead) == ("ended", None, "orchestrator_lost")
    assert (await heir.acquire("a")).previous_end == "orchestrator_lost"
    assert heir.pool.counts()["leased"] == 1


async def test_a_session_with_a_checkpoint_sleeps(heir: World, dead: KernelSession) -> None:
    """The agent is told how many cells are lost."""
    other = World(heir.folder, name="older")
    second = await other.acquire("b")
    await other.checkpoint(second)
    await other.run(second)
    await other.crash()
    heir.owners.dead.add("older")
    await heir.recover(Inheritance())
    assert await state_of(heir, second) == ("asleep", None, None)
    woken = await heir.acquire("b")
    assert woken.session_id == second.session_id
    assert "the effects of the 1 cells after that are lost" in (await heir.run(woken)).warnings[0]


@pytest.mark.parametrize("case", ["other policy", "no place", "not captured"])
async def test_a_kernel_that_cannot_stay_hands_its_state_over(heir: World, dead: KernelSession, case: str) -> None:
    """Its state goes on in another kernel, unless it cannot be captured."""
    inheritance = Inheritance({dead.kernel_id})
    inheritance.alike = case == "no place"
    if case == "no place":
        other = World(heir.folder, name="dead")
        newer = await other.acquire("b")
        await other.crash()
        inheritance.left.add(newer.kernel_id)
    if case == "not captured":
        inheritance.refusal = "no"
    await heir.recover(inheritance)
    expected = ("ended", None, "reconfigured") if case == "not captured" else ("asleep", None, None)
    assert await state_of(heir, dead) == expected


async def test_what_another_process_has_is_left_to_it(heir: World, dead: KernelSession) -> None:
    """Its kernel has another folder, or its session was taken over first."""
    recovery = await heir.recover(Inheritance({dead.kernel_id}, others={dead.kernel_id}))
    assert recovery.sessions == ()
    assert await state_of(heir, dead) == ("live", "dead", None)


async def test_a_store_that_cannot_be_written_stops_the_recovery(heir: World, dead: KernelSession) -> None:
    """The error is the caller's; a sweep that the engine refuses is the next start's."""
    heir.store.refuses = (History.has_running_cells,)
    with pytest.raises(StoreError):
        await heir.recover(Inheritance({dead.kernel_id}))
    heir.store.refuses = ()
    heir.owners.dead.add("heir")
    inheritance = Inheritance({dead.kernel_id})
    inheritance.sweep_failure = EngineError("no answer.")
    assert (await heir.recover(inheritance)).containers == 1


def test_an_owner_is_dead_when_nobody_holds_its_lease() -> None:
    """Or when the machine was started since; one of another network namespace may live."""
    boot, namespace = host_identity()
    lease = Lease.take("instance.0badc0de")
    assert lease is not None
    mine = HostOwners("0badc0de")
    assert mine.name == f"{boot}/{namespace}/0badc0de"
    assert not mine.is_dead(mine.name)
    lease.release()
    assert mine.is_dead(mine.name)
    assert mine.is_dead(f"other/{namespace}/0badc0de")
    assert not mine.is_dead(f"{boot}/1/0badc0de")


async def test_lost_sessions_are_those_of_dead_owners(heir: World, dead: KernelSession) -> None:
    """Not those that ended, sleep, or belong to a process that lives."""
    mine = await heir.acquire("b")
    ended = await heir.acquire("c")
    await heir.registry.end(ended, Outcome.END_SESSION)
    records = await heir.store.run(History.sessions)
    assert {record.session_id for record in records} == {dead.session_id, mine.session_id, ended.session_id}
    assert [record.session_id for record in lost_sessions(records, heir.owners)] == [dead.session_id]
