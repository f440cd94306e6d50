"""Recovery runs beside serving: an agent waits for its own session only, whatever the kernels of dead processes do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import docker
import pytest

from orchestrator.container.hostconfig import INSTANCE_LABEL
from orchestrator.container.reaper import Leftover
from orchestrator.errors import KernelStartError, ManagerClosedError, SessionBusyError, StoreError
from orchestrator.kernel.kernel import Kernel
from orchestrator.sessions.recovery import Takeover, take_over
from orchestrator.store.history import History
from tests.conftest import REPOSITORY, make_manager
from tests.unit.sessionworld import Inheritance, World

AT_ONCE = 1.0  # seconds, without an engine


class Patient(Inheritance):
    """Kernels of which some do not answer until a test lets them."""

    def __init__(self, left: set[str], deaf: set[str]) -> None:
        super().__init__(left)
        self.deaf = deaf
        self.answers = asyncio.Event()
        self.swept = 0

    async def adopt(self, left: Leftover) -> Kernel:
        if left.kernel_id in self.deaf:
            await self.answers.wait()
            raise KernelStartError("it does not answer.", cause="timeout")
        return await super().adopt(left)

    async def sweep(self) -> int:
        self.swept += 1
        return await super().sweep()


@pytest.fixture
async def kernels(tmp_path: Path) -> dict[str, str]:
    """The kernels, by agent, of a process that has died: ten of agents "0" to "9"."""
    world = World(tmp_path, name="dead", max_kernels=12)
    sessions = [await world.acquire(str(number)) for number in range(10)]
    await world.crash()
    return {session.agent_id: session.kernel_id for session in sessions}


@pytest.fixture
async def heir(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path, name="heir", max_kernels=12)
    world.owners.dead = {"dead"}
    yield world
    await world.close()


async def begin(heir: World, inheritance: Inheritance) -> Takeover:
    return await take_over(heir.registry, heir.pool, inheritance, heir.owners)


async def test_each_agent_waits_for_its_own_kernel(heir: World, kernels: dict[str, str]) -> None:
    """Nine are deaf, more than are continued at once: the tenth's agent, and a new one, are served meanwhile."""
    well = "0"  # the least recently used: it would come last
    inheritance = Patient(set(kernels.values()), set(kernels.values()) - {kernels[well]})
    takeover = await begin(heir, inheritance)
    begun = time.monotonic()
    assert (await heir.acquire(well)).kernel_id == kernels[well]
    assert (await heir.acquire("new")).state == "live"
    assert time.monotonic() - begun < AT_ONCE
    with pytest.raises(SessionBusyError, match="taken over"):
        await heir.acquire("1", timeout=0.1)
    assert heir.pool.counts()["leased"] == 11  # kernels that may yet be adopted have their places
    assert inheritance.swept == 0
    inheritance.answers.set()
    assert await takeover.settled()
    assert (inheritance.swept, takeover.recovery.containers) == (1, 13)
    assert (await heir.acquire("1")).previous_end == "orchestrator_lost"
    assert heir.pool.counts()["leased"] == 3


async def test_a_session_on_its_way_is_neither_used_nor_evicted(heir: World, kernels: dict[str, str]) -> None:
    """While its state moves to another kernel, nobody takes its old one."""
    inheritance = Patient({kernels["0"]}, set())
    inheritance.alike = False
    takeover = await begin(heir, inheritance)
    async with asyncio.timeout(5):
        while "0" not in heir.registry.sessions:
            await asyncio.sleep(0)
    session = heir.registry.sessions["0"]
    assert not await heir.hibernation.hibernate(session, "hibernate")
    again = await heir.acquire("0")
    assert (again.previous_end, again.kernel_id != kernels["0"]) == ("reconfigured", True)
    assert await takeover.settled()


async def test_a_store_that_fails_ends_no_adopted_kernel_and_is_tried_again(
    heir: World, kernels: dict[str, str]
) -> None:
    """The session's own agent gets the error; kernels that were adopted before serve; a later try continues it."""
    inheritance = Patient(set(kernels.values()), {kernels["1"]})
    takeover = await begin(heir, inheritance)
    async with asyncio.timeout(5):
        while len(heir.registry.sessions) < 9:
            await asyncio.sleep(0.01)
    heir.store.refuses = (History.checkpoints_of,)
    waiting = asyncio.create_task(heir.acquire("1", timeout=5))
    await asyncio.sleep(0.01)
    inheritance.answers.set()
    with pytest.raises(StoreError):
        await waiting
    with pytest.raises(StoreError):
        await takeover.settled()
    takeover.go_on()
    assert (await heir.acquire("2")).kernel_id == kernels["2"]
    heir.store.refuses = ()
    assert (await heir.acquire("1", timeout=20)).previous_end == "orchestrator_lost"
    assert takeover.is_over or await takeover.ended(5)


async def test_what_is_abandoned_runs_on(heir: World, kernels: dict[str, str]) -> None:
    """Neither a place in the pool nor a waiting agent is left; the next process has the kernels."""
    inheritance = Patient(set(kernels.values()), {kernels["3"]})
    takeover = await begin(heir, inheritance)
    async with asyncio.timeout(5):
        while len(heir.registry.sessions) < 9:
            await asyncio.sleep(0.01)
    waiting = asyncio.create_task(heir.acquire("3"))
    await asyncio.sleep(0.01)
    heir.registry.closed = True
    await takeover.abandon()
    with pytest.raises(ManagerClosedError):
        await waiting
    assert inheritance.swept == 0
    assert set(heir.pool.kernels) == set(kernels.values()) - {kernels["3"]}
    assert not heir.registry.continuing
    row = await heir.store.run(History.sessions_of, "3")
    assert (row[0].state, row[0].owner) == ("live", "heir")


PROGRAM = """
import asyncio, contextlib
from orchestrator import AgentKernelManager
SLOW = '''
class Slow:
    def __reduce__(self):
        import time
        time.sleep(18)
        return int, (7,)
slow = Slow()
'''
DEAF = '''
import time
while True:
    try:
        time.sleep(0.1)
    except KeyboardInterrupt:
        pass
'''
async def main():
    async with AgentKernelManager(max_kernels=4) as manager, contextlib.AsyncExitStack() as held:
        sessions = {}
        for agent in ("slow", "deaf", "well"):
            _, sessions[agent] = await held.enter_async_context(manager.acquire_kernel(agent))
            await manager.execute_code(sessions[agent], f"name = {agent!r}")
        await manager.execute_code(sessions["slow"], SLOW)
        deaf = asyncio.create_task(manager.execute_code(sessions["deaf"], DEAF))
        while sessions["deaf"].running_cell is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        print("ready", flush=True)
        await deaf

asyncio.run(main())
"""


def left_in(state: Path) -> list[str]:
    client = docker.from_env()
    try:
        found = client.api.containers(all=True, filters={"label": INSTANCE_LABEL})
    finally:
        client.close()
    return [
        each["Names"][0] for each in found if any(mount["Source"].startswith(f"{state}/") for mount in each["Mounts"])
    ]


@pytest.fixture
def lost(runtime: str, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sessions of a killed process, one slow and one deaf, and another policy since. Return the state folder."""
    policy = tmp_path / "p.toml"
    policy.write_text("[limits]\nexecution_time_s = 600\n")
    for name, value in {"STATE_DIR": state, "POLICY": policy, "WARM_KERNELS": "0", "RUNTIME": runtime}.items():
        monkeypatch.setenv(f"CELLBLOCK_{name}", str(value))
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, env=dict(os.environ), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait(30)
    process.stdout.close()
    policy.write_text("[limits]\nexecution_time_s = 600\nmemory_mb = 700\n")
    return state


async def test_one_slow_and_one_deaf_kernel_hold_up_their_own_agents_only(runtime: str, lost: Path) -> None:
    """Once 63 s. A new agent is served before the start would have returned, and each of the old ones in the end."""
    begun = time.monotonic()
    manager = make_manager(runtime, max_kernels=6)
    async with asyncio.timeout(120):
        async with manager.acquire_kernel("new", timeout=30) as (_kernel, session):
            assert (await manager.execute_code(session, "1 + 1"))["result"] == "2"
        new = time.monotonic() - begun
        await manager.start()
        assert time.monotonic() - begun < 30
        async with manager.acquire_kernel("well", timeout=60) as (_kernel, session):
            assert (await manager.execute_code(session, "name"))["result"] == "'well'"
        async with manager.acquire_kernel("slow", timeout=60) as (_kernel, session):
            assert (await manager.execute_code(session, "slow"))["result"] == "7"
        async with manager.acquire_kernel("deaf", timeout=60) as (_kernel, session):
            assert session.previous_end == "orchestrator_lost"
        await manager.shutdown()
    assert new < 15, "a start and a cell, on a loaded machine"
    assert left_in(lost) == []
    assert not list(lost.rglob("*"))


@pytest.mark.one_runtime
async def test_a_shutdown_during_the_recovery_leaves_nothing_and_loses_nothing(runtime: str, lost: Path) -> None:
    """It waits until each kernel has moved or ended, no longer than the kernels' own bounds."""
    manager = make_manager(runtime, max_kernels=6)
    async with manager.acquire_kernel("new", timeout=30):
        pass
    async with asyncio.timeout(90):
        await manager.shutdown()
    assert left_in(lost) == []
    assert not list(lost.rglob("*"))
    async with make_manager(runtime, max_kernels=6) as manager:
        for agent, code, value in (("slow", "slow", "7"), ("well", "name", "'well'")):
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                assert (await manager.execute_code(session, code))["result"] == value


@pytest.mark.one_runtime
async def test_a_start_that_is_cancelled_while_a_state_moves_loses_nothing(runtime: str, lost: Path) -> None:
    """The next start, of the same manager, has every session."""
    manager = make_manager(runtime, max_kernels=6)
    starting = asyncio.create_task(manager.start())
    async with asyncio.timeout(30):
        while "slow" not in manager.sessions:
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    starting.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert not manager.sessions
    assert not manager.pool.kernels
    async with asyncio.timeout(120), manager:
        for agent, code, value in (("slow", "slow", "7"), ("well", "name", "'well'")):
            async with manager.acquire_kernel(agent, timeout=90) as (_kernel, session):
                assert (await manager.execute_code(session, code))["result"] == value
    assert left_in(lost) == []
