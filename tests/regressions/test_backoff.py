"""An agent whose kernels keep dying waits for its next one, and its neighbours do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from orchestrator import AgentKernelManager, KernelPoolExhaustedError, ManagerClosedError
from orchestrator.container.exits import Exit
from orchestrator.errors import CheckpointError
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.outcome import Outcome
from orchestrator.sessions.backoff import Backoff
from tests.conftest import make_manager
from tests.unit.sessionworld import World

DIE = "import os; os._exit(1)"


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_wait_doubles_up_to_its_bound() -> None:
    """Two deaths are free; another agent's do not count."""
    backoff = Backoff(Clock())
    assert [backoff.died("a", 0.1) for _ in range(11)] == [0, 0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert backoff.died("b", 0.1) == 0
    assert backoff.waits() == {"a": 30}


def test_a_kernel_that_served_ends_the_streak() -> None:
    """So do five minutes without a death, and the end of the engine; a good cell and its kill a moment later do not."""
    clock = Clock()
    backoff = Backoff(clock)
    for _ in range(5):
        backoff.died("a", 9.0)
    assert backoff.died("a", 10.0) == 0
    assert [backoff.died("a", 0.0) for _ in range(3)] == [0, 0.5, 1]
    clock.now += 302
    assert not backoff.waits()
    assert backoff.died("a", 0.0) == 0
    backoff.died("a", 0.0)
    backoff.forgive("a")
    assert backoff.died("a", 0.0) == 0


def test_agents_that_die_once_are_forgotten_in_the_end() -> None:
    """Invented agents take no memory without a bound."""
    backoff = Backoff(Clock())
    for number in range(20_000):
        backoff.died(str(number), 0.0)
    assert len(backoff._streaks) == 10_000


async def test_a_wait_ends_with_its_time_its_deadline_or_the_shutdown(tmp_path: Path) -> None:
    """A call with too short a timeout is refused at once; a cancelled wait leaves nothing."""
    world = World(tmp_path)
    for _ in range(3):
        await world.die(await world.acquire("a"))
    begun = time.monotonic()
    with pytest.raises(KernelPoolExhaustedError) as refused:
        await world.acquire("a", timeout=0.1)
    assert (refused.value.reason, time.monotonic() - begun < 0.1) == ("backoff", True)
    assert 0.1 < (refused.value.expected_wait or 0) <= 0.5
    await world.acquire("b", timeout=0.2)
    waiting = asyncio.create_task(world.acquire("a"))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not world.registry.is_locked("a")
    session = await world.acquire("a")
    assert time.monotonic() - begun > 0.4
    for _ in range(4):
        await world.die(session)
        session = await world.acquire("a", timeout=20) if _ < 3 else session
    waiting = asyncio.create_task(world.acquire("a", timeout=None))
    await asyncio.sleep(0.05)
    await world.close()
    with pytest.raises(ManagerClosedError):
        await waiting


async def test_a_session_that_is_ended_after_each_death_is_held_back_too(tmp_path: Path) -> None:
    """Whatever the program does about a death; a session that is ended alive costs no wait."""
    world = World(tmp_path)
    for _ in range(5):
        session = await world.acquire("good")
        await world.registry.end(session, Outcome.END_SESSION)
    for _ in range(3):
        session = await world.acquire("bad")
        world.kernel_of(session).die(Exit(Outcome.KERNEL_DIED, 1))
        await world.registry.end(session, Outcome.END_SESSION)
    assert set(world.registry.backoff.waits()) == {"bad"}
    await world.close()


async def test_the_engines_end_holds_nobody_back(tmp_path: Path) -> None:
    """It is not the agents' doing."""
    world = World(tmp_path)
    for _ in range(5):
        session = await world.acquire("a")
        await world.die(session, Exit(Outcome.ENGINE_LOST, None))
    assert not world.registry.backoff.waits()
    await world.close()


async def test_a_state_that_kills_each_kernel_is_held_back(tmp_path: Path) -> None:
    """Waking and restoring it cost a kernel each time."""
    world = World(tmp_path)
    session = await world.acquire("a")
    await world.checkpoint(session)
    await world.registry.put_to_sleep(session, Outcome.HIBERNATE)

    def refuse(kernel: FakeKernel) -> None:
        kernel.state.refusal = "it cannot be loaded"

    world.next_kernel = refuse
    for _ in range(3):
        with pytest.raises(CheckpointError):
            await world.acquire("a")
    assert set(world.registry.backoff.waits()) == {"a"}
    await world.close()


async def kill_in_a_loop(manager: AgentKernelManager, seconds: float) -> tuple[int, set[str]]:
    """Run cells that kill their kernels, a good one before each. Return how many kernels that took, and who waited."""
    end, kernels, seen = time.monotonic() + seconds, 0, set[str]()
    while (left := end - time.monotonic()) > 0:
        with contextlib.suppress(KernelPoolExhaustedError):
            async with manager.acquire_kernel("attacker", timeout=left) as (_kernel, session):
                kernels += 1
                await manager.execute(session, "1")
                await manager.execute(session, DIE)
        seen.update(manager.overview()["held_back"])
        await asyncio.sleep(0.05)
    return kernels, seen


@pytest.mark.one_runtime
async def test_a_loop_of_dying_kernels_is_held_back_and_seen(runtime: str) -> None:
    """Its neighbour gets kernels as ever, and the overview names the agent."""
    async with make_manager(runtime, max_kernels=3) as manager:
        async with manager.acquire_kernel("neighbour", timeout=60) as (_kernel, neighbour):
            kernels, held_back = await kill_in_a_loop(manager, 15)
            assert (kernels <= 7, held_back) == (True, {"attacker"})
            assert (await manager.execute(neighbour, "1")).outcome == "ok"
        async with manager.acquire_kernel("third", timeout=20):
            pass
        async with manager.acquire_kernel("attacker", timeout=60) as (_kernel, session):
            assert (await manager.execute(session, "1")).outcome == "ok"
