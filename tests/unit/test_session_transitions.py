"""Acquiring, waking, moving, forking and ending sessions when something goes wrong on the way. No engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.errors import (
    CheckpointError,
    CheckpointForeignError,
    CheckpointMissingError,
    CheckpointStateError,
    EngineError,
    InvalidInputError,
    KernelDiedError,
    KernelPoolExhaustedError,
    ManagerClosedError,
    SessionBusyError,
    SessionEndedError,
    StoreError,
)
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.limits import Deadline
from orchestrator.outcome import Outcome
from orchestrator.pool.scheduler import LeaseRequest
from orchestrator.sessions.checkpoint import capture_if_due, load
from orchestrator.sessions.restored import Restored
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import Claim, History
from tests.unit.sessionworld import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    yield world
    await world.close()


async def blocked(world: World) -> threading.Event:
    """Keep the store's thread busy until the event is set."""
    event = threading.Event()
    world.store.submit(lambda _store: event.wait(10))
    return event


async def asleep(world: World, agent: str = "a") -> KernelSession:
    session = await world.acquire(agent)
    await world.run(session)
    assert await world.hibernation.hibernate(session, Outcome.HIBERNATE)
    return session


async def until_free(world: World, kernels: int) -> None:
    """Wait until the pool has so many kernels that belong to an agent."""
    async with asyncio.timeout(5):
        while world.pool.counts()["leased"] + world.pool.counts()["ending"] > kernels:
            await asyncio.sleep(0.001)


async def test_a_session_whose_row_cannot_be_written_never_begins(world: World) -> None:
    """Its kernel is discarded: an agent may have had it. The agent's next session is another."""
    world.store.refuses = (History.add_session,)
    with pytest.raises(StoreError):
        await world.acquire("a")
    await until_free(world, 0)
    world.store.refuses = ()
    session = await world.acquire("a")
    assert session.previous_end is None
    new = world.registry.make("b")
    world.store.refuses = (History.add_session,)
    with pytest.raises(StoreError):
        await new.begin(FakeKernel())
    assert (new.state, new.ended) == ("ended", "never_started")


async def test_a_cancelled_beginning_leaves_an_ended_row(world: World) -> None:
    """The row was on its way when the caller was cancelled."""
    event = await blocked(world)
    new = world.registry.make("a")
    task = asyncio.create_task(new.begin(FakeKernel()))
    await asyncio.sleep(0.01)
    task.cancel()
    event.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    record = await world.row(new.session_id)
    assert record is not None
    assert (record.state, record.end_reason) == ("ended", "never_started")


async def test_a_cancelled_wake_gives_the_session_back(world: World) -> None:
    """This process must not stay its owner: nobody could wake it then."""
    session = await asleep(world)
    event = await blocked(world)
    task = asyncio.create_task(session.take_over(None))
    await asyncio.sleep(0.01)
    task.cancel()
    event.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    record = await world.row(session.session_id)
    assert record is not None
    assert record.owner is None
    assert (await world.acquire("a")).session_id == session.session_id


async def test_a_wake_whose_row_cannot_be_written_leaves_it_asleep(world: World) -> None:
    """The object and the row say so, and the next attempt wakes it."""
    session = await asleep(world)
    world.store.refuses = (History.session_lives,)
    with pytest.raises(StoreError):
        await world.acquire("a")
    world.store.refuses = ()
    record = await world.row(session.session_id)
    assert record is not None
    assert (session.state, record.state, record.owner) == ("asleep", "asleep", None)
    assert await world.acquire("a") is session


async def test_a_session_that_another_process_wakes_is_refused(world: World) -> None:
    """Whoever is second learns it, before waking and before ending it."""
    session = await asleep(world)
    other = World(world.folder, name="other")
    assert await other.store.run(History.take_ownership, session.session_id, None, "other")
    with pytest.raises(CheckpointError, match="another process"):
        await session.wake(FakeKernel(), _never, cells=1)
    assert not await world.acquiring.end("a", "end_session")  # an owned row is not found
    await other.close()


async def test_an_end_that_comes_second_to_another_process_does_nothing(world: World) -> None:
    """The row was free when it was found, and is not when it is taken."""
    session = await asleep(world)
    event = await blocked(world)
    reading = asyncio.create_task(world.acquiring.end("a", "end_session"))
    await asyncio.sleep(0.01)
    world.store.submit(History.take_ownership, session.session_id, None, "other")
    event.set()
    assert not await reading
    assert session.state == "asleep"
    world.store.submit(History.take_ownership, session.session_id, "other", None)


async def test_ending_a_session_that_sleeps_or_is_not_there(world: World) -> None:
    """The object that a caller holds says that it has ended; without a session, ``end`` returns False."""
    session = await asleep(world)
    assert await world.acquiring.end("a", "end_session")
    assert (session.state, session.ended) == ("ended", "end_session")
    assert not await world.acquiring.end("a", "end_session")
    await session.end("again")
    await session.sleep("again")
    assert (session.state, session.ended) == ("ended", "end_session")
    assert (await world.acquire("a")).session_id != session.session_id


async def test_a_session_without_its_checkpoint_cannot_be_woken(world: World) -> None:
    """The error says how to start anew."""
    session = await asleep(world)
    await world.store.run(History.drop_checkpoints, Claim(session.session_id, 1))
    with pytest.raises(CheckpointMissingError, match="end_session"):
        await world.acquire("a")
    with pytest.raises(CheckpointMissingError):
        await load(FakeKernel(), world.files, world.files.path("0" * 32), "a", 1.0)


async def test_a_busy_session_is_refused_after_the_timeout(world: World) -> None:
    """Another call wakes it, or its last kernel is being reaped."""
    async with world.registry.locked("a", None):
        assert world.registry.is_locked("a")
        with pytest.raises(SessionBusyError):
            await world.acquire("a", 0.01)
    assert not world.registry.is_locked("a")
    session = await world.acquire("b")
    world.kernel_of(session).exit_s = 0.1
    world.kernel_of(session).die()
    with pytest.raises(SessionBusyError, match="not yet said how"):
        await world.acquire("b", 0.01)
    assert (await world.acquire("b")).previous_end == "kernel_died"


async def test_a_kernel_that_dies_while_its_session_is_reaped_elsewhere(world: World) -> None:
    """Whoever asks while the reaping runs waits for the same one."""
    session = await world.acquire("a")
    kernel = world.kernel_of(session)
    kernel.exit_s = 0.05
    kernel.die()
    await asyncio.gather(*(world.registry.reap_if_dead(session) for _ in range(3)))
    assert session.state == "ended"
    await world.registry.reap_if_dead(session)
    await world.registry.reaped("a", None)


async def test_an_engine_that_does_not_answer_is_the_end_that_is_reported(world: World) -> None:
    """``kernel.exit`` raises, and so does its removal; the place in the pool is free all the same."""
    session = await world.acquire("a")
    world.kernel_of(session).engine_error = EngineError("no answer.")
    await world.die(session)
    assert session.ended == "engine_lost"
    assert world.pool.counts()["leased"] == 0


async def test_a_session_that_ends_while_it_is_reaped_ends_once(world: World) -> None:
    """The reason is the first one."""
    session = await world.acquire("a")
    kernel = world.kernel_of(session)
    kernel.exit_s = 0.05
    kernel.die()
    await asyncio.sleep(0.01)
    await world.registry.end(session, "end_session")
    await world.registry.end(session, "again")
    await world.quiet()
    assert session.ended == "end_session"
    await world.registry.put_to_sleep(session, "idle")
    assert session.state == "ended"


async def test_a_store_that_cannot_be_read_does_not_keep_a_place(world: World) -> None:
    """The session sleeps, whether or not it has a checkpoint: waking it reports the error."""
    session = await world.acquire("a")
    world.store.refuses = (History.checkpoints_of, History.session_sleeps)
    await world.die(session)
    assert session.state == "asleep"
    assert world.pool.counts()["leased"] == 0
    world.store.refuses = ()
    session = await world.acquire("b")
    world.store.refuses = (History.session_ends,)
    await world.registry.end(session, "end_session")
    assert session.state == "ended"


async def test_a_closed_registry_gives_no_kernels(world: World) -> None:
    """Deaths are left to the shutdown."""
    session = await world.acquire("a")
    world.registry.closed = True
    world.kernel_of(session).die()
    await world.quiet()
    assert session.state == "live"
    with pytest.raises(ManagerClosedError):
        await world.acquire("b")
    world.registry.closed = False


async def test_a_registry_without_a_store_has_no_sessions_to_end(tmp_path: Path) -> None:
    """Before the manager has started, there is nothing."""
    world = World(tmp_path, is_open=False)
    assert not await world.acquiring.end("a", "end_session")
    assert not world.hibernation.make_room()
    await world.close()


async def test_groups_and_priorities_follow_the_session(world: World) -> None:
    """A group stays until another is named; the pool charges it."""
    session = await world.acquire("a", group="red")
    assert session.lease_request == LeaseRequest("red", 0)
    await world.acquire("a", group="blue", priority=2)
    assert session.lease_request == LeaseRequest("blue", 2)
    assert {resource.group for resource in world.pool.kernels.values() if resource.served} == {"blue"}
    await world.hibernation.hibernate(session, Outcome.HIBERNATE)
    world.registry.charge(session, LeaseRequest("green"))  # it has no kernel: nothing is charged
    assert (await world.acquire("a")).lease_request == LeaseRequest("blue", 0)


async def test_a_kernel_that_died_unseen_is_not_leased(world: World) -> None:
    """The pool hands it out, and another is taken."""
    died: list[FakeKernel] = []

    def die_first(kernel: FakeKernel) -> None:
        if not died:
            died.append(kernel)
            asyncio.get_running_loop().call_soon(kernel.die)

    world.next_kernel = die_first
    kernel, _resource = await world.acquiring.lease(Deadline(5.0), LeaseRequest())
    assert kernel.is_alive
    assert kernel is not died[0]


async def test_a_caller_that_is_cancelled_waits_for_no_kernel(tmp_path: Path) -> None:
    """Its place in the queue goes to the next one."""
    world = World(tmp_path, max_kernels=1)
    held = await world.acquire("a")
    with held.in_use():
        task = asyncio.create_task(world.acquire("b", None))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(KernelPoolExhaustedError):
            await world.acquire("b", 0.01)
    await world.close()


async def test_a_restore_that_fails_changes_nothing(world: World) -> None:
    """Not when the checkpoint is another agent's, does not load, or the row cannot be written."""
    session = await world.acquire("a")
    made = await world.checkpoint(session)
    other = await world.acquire("b")
    kernel = session.kernel
    with pytest.raises(CheckpointForeignError):
        await world.restore(other, made)
    world.next_kernel = _refuse
    with pytest.raises(CheckpointStateError):
        await world.restore(session, made)
    world.next_kernel = lambda _kernel: None
    world.store.refuses = (History.session_lives,)
    with pytest.raises(StoreError):
        await world.restore(session, made)
    world.store.refuses = ()
    assert session.kernel is kernel
    record = await world.row(session.session_id)
    assert record is not None
    assert record.kernel_id == session.kernel_id
    restored = await world.restoring.restore(session, made.checkpoint_id, None)
    assert session.restored is restored
    assert session.kernel is not kernel
    await world.restoring.restore(session, str(made.path), 5.0)
    await until_free(world, 2)


async def test_a_move_to_a_kernel_that_dies_meanwhile_keeps_the_old_one(world: World) -> None:
    """The row has the old kernel again."""
    session = await world.acquire("a")
    made = await world.checkpoint(session)
    old, fresh = session.kernel, FakeKernel("fresh")
    restored = await load(fresh, world.files, made.path, "a", 5.0)
    fresh.die()
    with pytest.raises(KernelDiedError):
        await session.move(fresh, restored)
    assert session.kernel is old
    record = await world.row(session.session_id)
    assert record is not None
    assert record.kernel_id == session.kernel_id


async def test_a_session_that_ends_while_it_moves_has_ended(world: World) -> None:
    """Its row stays ended."""
    session = await world.acquire("a")
    made = await world.checkpoint(session)
    fresh = FakeKernel("fresh")
    restored = await load(fresh, world.files, made.path, "a", 5.0)
    event = await blocked(world)
    moving = asyncio.create_task(session.move(fresh, restored))
    await asyncio.sleep(0.01)
    ending = asyncio.create_task(world.registry.end(session, "end_session"))
    await asyncio.sleep(0.01)
    event.set()
    await ending
    with pytest.raises(SessionEndedError):
        await moving
    record = await world.row(session.session_id)
    assert record is not None
    assert (record.state, session.state) == ("ended", "ended")


async def test_a_restored_state_that_cannot_be_kept_is_a_notice(world: World) -> None:
    """The restore itself is done."""
    session = await world.acquire("a")
    made = await world.checkpoint(session)
    world.store.refuses = (History.add_checkpoint,)
    await world.restore(session, made)
    world.store.refuses = ()
    assert any("could not be kept" in warning for warning in (await world.run(session)).warnings)


async def test_forks_have_the_ids_that_are_free(world: World) -> None:
    """Names that are given must be valid, different and free."""
    session = await world.acquire("a")
    await world.run(session)
    forks = await world.forking.fork(session, 2)
    forks += await world.forking.fork(session, 1)
    assert [fork.agent_id for fork in forks] == ["a~1", "a~2", "a~3"]
    for wanted in (["b", "b"], ["a~1", "c"], ["", "c"]):
        with pytest.raises(InvalidInputError):
            await world.forking.fork(session, 2, wanted)
    assert (await world.acquire("a~3")).session_id == forks[2].session_id


async def test_forks_that_cannot_be_written_leave_no_files(world: World) -> None:
    """All or none."""
    session = await world.acquire("a")
    await world.checkpoint(session)
    await world.hibernation.hibernate(session, Outcome.IDLE)
    session = await world.acquire("a")
    world.store.refuses = (History.add_forks,)
    with pytest.raises(StoreError):
        await world.forking.fork(session, 2)
    world.store.refuses = ()
    known = await world.store.run(History.known_checkpoints)
    assert {path.stem for path in world.files.path("x").parent.glob("*") if path.stem in known} == known
    assert len(list(world.files.path("x").parent.glob(f"*{world.files.path('x').suffix}"))) == len(known)


async def test_checkpoints_after_every_few_cells(world: World) -> None:
    """One that fails is a notice; 0 makes none; a session without a kernel has none."""
    session = await world.acquire("a")
    await world.run(session)
    await capture_if_due(session, world.files, 0)
    await capture_if_due(session, world.files, 2)
    assert not await world.registry.has_checkpoint(session.session_id)
    await world.run(session)
    await capture_if_due(session, world.files, 2)
    assert await world.registry.has_checkpoint(session.session_id)
    world.kernel_of(session).state.refusal = "no"
    await world.run(session)
    await capture_if_due(session, world.files, 1)
    assert any("no checkpoint could be made after cell 3" in text for text in (await world.run(session)).warnings)


async def test_a_checkpoint_that_cannot_be_recorded_leaves_no_file(world: World) -> None:
    """The error is the store's."""
    session = await world.acquire("a")
    world.store.refuses = (History.add_checkpoint,)
    before = sorted(world.folder.rglob("*"))
    with pytest.raises(StoreError):
        await world.checkpoint(session)
    assert len(sorted(world.folder.rglob("*"))) <= len(before) + 1  # the folder itself
    world.store.refuses = ()
    made = await world.checkpoint(session)
    assert made.complete
    assert len(await world.store.run(History.checkpoints_of, session.session_id)) == 1


async def test_an_abandoned_session_stays_live_in_the_store(world: World) -> None:
    """As after a crash: the kernel runs on, and its row is this process's."""
    session = await world.acquire("a")
    kernel = world.kernel_of(session)
    world.registry.abandon(session)
    record = await world.row(session.session_id)
    assert record is not None
    assert (record.state, record.owner, session.state, kernel.abandoned) == ("live", "me", "asleep", True)
    session.abandon()
    assert session.state == "asleep"


def test_the_ends_that_are_remembered_are_bounded(tmp_path: Path) -> None:
    """The oldest are forgotten first."""

    async def remember() -> World:
        world = World(tmp_path)
        for number in range(10_001):
            world.registry.remember_end(f"agent-{number}", "idle")
        await world.close()
        return world

    world = asyncio.run(remember())
    assert world.registry.take_end("agent-0") is None
    assert world.registry.take_end("agent-1") == "idle"


async def _never() -> Restored:
    raise AssertionError("nothing is loaded")


def _refuse(kernel: FakeKernel) -> None:
    kernel.state.refusal = "no"
