"""The Docker engine dies, restarts or hangs under a running manager, and every outcome is reported precisely."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import pytest

from orchestrator import AgentKernelManager, KernelDiedError
from orchestrator.errors import CellblockError
from tests.conftest import engine_runtimes, make_manager, one_session
from tests.faults.privateengine import PrivateEngine

REPORTED = 2.0  # seconds until a cell must have ended after its engine was killed
HANG = 60.0  # seconds for which the engine hangs
STALL = 0.1  # seconds that a turn of the event loop may take


async def test_a_killed_engine_is_told_as_such(engine: PrivateEngine, runtime: str) -> None:
    """The running cell ends as engine_lost within 2 s, its process dies, and the next lease reports why."""
    async with make_manager(runtime, max_kernels=2) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (kernel, session):
            await manager.execute_code(session, "kept = 1")
            running = asyncio.create_task(manager.execute_code(session, "print('begun', flush=True)\nwhile True: pass"))
            await asyncio.sleep(1)
            engine.signal(signal.SIGKILL)
            killed = time.monotonic()
            result = await asyncio.wait_for(running, 30)
            took = time.monotonic() - killed
            assert took < REPORTED
            assert (result["outcome"], result["kernel_state"]) == ("engine_lost", "dead")
            assert result["error"]["ename"] == "EngineLost"
            assert result["stdout"] == "begun\n"
            assert result["evidence"]["exit_code"] is None
            assert not await kernel.is_alive()
            with pytest.raises(KernelDiedError) as died:
                await manager.execute_code(session, "kept")
            assert died.value.reason == "engine_lost"
        await asyncio.to_thread(engine.ensure_running)
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            assert session.previous_end == "engine_lost"
            assert (await manager.execute_code(session, "1 + 1"))["result"] == "2"


async def test_an_engine_that_hangs_is_not_gone(engine: PrivateEngine, runtime: str) -> None:
    """While the engine is stopped for 5 s cells go on, because their wire does not use the engine."""
    async with one_session(runtime, max_kernels=1) as (manager, session):
        engine.signal(signal.SIGSTOP)
        try:
            code = "import time; time.sleep(4); 6 * 7"
            assert (await asyncio.wait_for(manager.execute_code(session, code), 30))["result"] == "42"
        finally:
            engine.signal(signal.SIGCONT)
        assert (await manager.execute_code(session, "1 + 1"))["result"] == "2"


@pytest.mark.parametrize("live_restore", [False, True], ids=["containers-end", "live-restore"])
async def test_a_restarted_engine_costs_a_lease_once(
    engine: PrivateEngine, runtime: str, state: Path, live_restore: bool
) -> None:
    """A cell ends once with the right outcome, the pool refills, and no old container is left.

    With live-restore, an engine that returns within the second after which it counts as lost has no effect.
    """
    await asyncio.to_thread(engine.restart, live_restore=live_restore)
    async with make_manager(runtime, max_kernels=3, warm=1) as manager:
        sessions = {}
        for agent in ("kept", "plain", "busy"):
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, sessions[agent]):
                await manager.execute_code(sessions[agent], f"mine = {agent!r}")
        await manager.checkpoint(sessions["kept"])
        before = set(engine.containers())
        running = asyncio.create_task(manager.execute_code(sessions["busy"], "import time; time.sleep(8)"))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(engine.restart, live_restore=live_restore)
        result = await asyncio.wait_for(running, 30)
        survived = result["outcome"] == "ok"
        assert survived <= live_restore
        assert survived or (result["outcome"] in ("engine_lost", "kernel_died") and result["kernel_state"] == "dead")
        for agent in sessions:
            found = await _after_one_failure(manager, agent, "mine")
            expected = repr(agent) if survived or agent == "kept" else "NameError"
            assert (found["result"] or found["error"]["ename"]) == expected
        assert [entry["result"]["outcome"] for entry in sessions["busy"].execution_history[1:2]] == [result["outcome"]]
        await manager.end_session("plain")
        async with asyncio.timeout(60):
            while manager.pool.available_count < 1 or not _are_all(manager, engine.containers()):
                await asyncio.sleep(0.2)
        assert survived or not before & set(engine.containers())
    assert engine.containers() == {}
    assert not list(state.rglob("*"))
    async with asyncio.timeout(20):
        while engine.processes():
            await asyncio.sleep(0.2)


def _are_all(manager: AgentKernelManager, containers: dict[str, str]) -> bool:
    """Return whether the engine has exactly the pool's kernels, all running."""
    return containers == {f"cellblock-{kernel_id}": "running" for kernel_id in manager.pool.kernels}


async def _after_one_failure(manager: AgentKernelManager, agent: str, code: str) -> dict[str, Any]:
    """Run a cell of an agent. Its lease may fail once with a typed error."""
    for attempt in range(2):
        try:
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                return await manager.execute_code(session, code)
        except CellblockError:
            if attempt:
                raise
    raise AssertionError("unreachable")


@pytest.mark.alone
async def test_an_engine_that_hangs_for_a_minute_stalls_nobody(
    engine: PrivateEngine, state: Path, tmp_path: Path
) -> None:
    """Under both runtimes cells go on, calls that need the engine fail in time, and everything works afterwards."""
    async with contextlib.AsyncExitStack() as stack:
        managers = [
            await stack.enter_async_context(
                make_manager(runtime, max_kernels=2, engine_timeout=5, data_dir=str(tmp_path / runtime))
            )
            for runtime in engine_runtimes()
        ]
        unopened = make_manager("auto", engine_timeout=5)
        sessions = []
        for manager in managers:
            async with manager.acquire_kernel("here", timeout=60) as (_kernel, session):
                sessions.append(session)
            async with manager.acquire_kernel("leaves", timeout=60):
                pass
        stalls = await stack.enter_async_context(Stalls())
        engine.signal(signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            for manager, session in zip(managers, sessions, strict=True):
                ending = asyncio.create_task(manager.end_session("leaves"))
                assert await _failed(manager, "new", 2.0) < 3.0
                assert (await manager.execute_code(session, "6 * 7"))["result"] == "42"
                await asyncio.wait_for(ending, 30)
                assert await _failed(manager, "new", None) < 25.0
            assert await _failed(unopened, "new", 1.0) < 2.0
            while time.monotonic() - stopped < HANG:
                for manager, session in zip(managers, sessions, strict=True):
                    assert (await manager.execute_code(session, "1 + 1"))["result"] == "2"
                await asyncio.sleep(1)
        finally:
            engine.signal(signal.SIGCONT)
        for manager in managers:
            async with manager.acquire_kernel("new", timeout=30) as (_kernel, session):
                assert (await manager.execute_code(session, "1 + 1"))["result"] == "2"
        async with asyncio.timeout(40):  # containers that could not be removed meanwhile are removed now
            while len(engine.containers()) != 2 * len(managers):
                await asyncio.sleep(0.5)
        assert stalls.longest < STALL
        await unopened.shutdown()
    assert engine.containers() == {}
    assert not list(state.rglob("*"))


async def _failed(manager: AgentKernelManager, agent: str, timeout: float | None) -> float:
    """Return the seconds after which a lease failed with a typed error."""
    begun = time.monotonic()
    with pytest.raises(CellblockError):
        async with manager.acquire_kernel(agent, timeout=timeout):
            pass
    return time.monotonic() - begun


class Stalls:
    """Watches the event loop from a thread for long turns, and ignores delays of waking the loop on a busy machine.

    Attributes:
        longest: the longest turn, in seconds.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self._loop_thread = threading.get_ident()
        self._turns = 0
        self._over = threading.Event()

    async def __aenter__(self) -> Self:
        self._ticking = asyncio.create_task(self._tick())
        self._watching = asyncio.create_task(asyncio.to_thread(self._watch))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await self._watching
        self._ticking.cancel()

    async def _tick(self) -> None:
        while True:
            self._turns += 1
            await asyncio.sleep(0.005)

    def _watch(self) -> None:
        seen, stalled, last = 0, 0.0, time.monotonic()
        while not self._over.wait(0.005):
            now = time.monotonic()
            waits = sys._current_frames()[self._loop_thread].f_code.co_name == "select"
            stalled = 0.0 if waits or self._turns != seen else stalled + now - last
            seen, last = self._turns, now
            self.longest = max(self.longest, stalled)
