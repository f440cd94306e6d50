"""What may happen to a session while something else happens to it: no place is lost, and no state but what must be."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from orchestrator import AgentKernelManager, KernelSession
from orchestrator.errors import SessionEndedError
from tests.conftest import make_manager, one_session

SLOW_TO_LOAD = """
class Slow:
    def __getstate__(self): return {'a': 1}
    def __setstate__(self, state):
        import time
        time.sleep(2)
slow = Slow()
"""
DIES_WHEN_CAPTURED_AGAIN = """
class Once:
    def __getstate__(self):
        import os
        if os.path.exists('/work/loaded'): os._exit(1)
        return {'a': 1}
    def __setstate__(self, state):
        open('/work/loaded', 'w').close()
once = Once()
"""
HANGS_UP = """
import os, stat, threading, time
def hang_up():
    time.sleep(0.5)
    for name in os.listdir('/proc/self/fd'):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode): os.close(int(name))
        except OSError: pass
threading.Thread(target=hang_up, daemon=True).start()
"""


async def run(manager: AgentKernelManager, session: KernelSession, code: str) -> dict[str, Any]:
    result = await manager.execute_code(session, code)
    assert result["status"] == "ok", result["error"]
    return result


async def until_empty(manager: AgentKernelManager) -> None:
    async with asyncio.timeout(30):
        while manager.pool.kernels:
            await asyncio.sleep(0.1)


async def test_a_kernel_that_dies_right_after_a_restore_costs_no_place(runtime: str) -> None:
    async with make_manager(runtime, max_kernels=2) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            await run(manager, session, DIES_WHEN_CAPTURED_AGAIN)
            made = await manager.checkpoint(session)
            await manager.restore(session, made)
        await until_empty(manager)


@pytest.mark.one_runtime
async def test_a_session_that_ends_while_it_is_restored_costs_no_place(runtime: str) -> None:
    async with make_manager(runtime, max_kernels=2) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            await run(manager, session, SLOW_TO_LOAD)
            made = await manager.checkpoint(session)
            restoring = asyncio.create_task(manager.restore(session, made))
            await asyncio.sleep(1.5)
            assert await manager.end_session("agent")
            with pytest.raises(SessionEndedError):
                await restoring
        await until_empty(manager)
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, fresh):
            assert fresh.session_id != session.session_id


@pytest.mark.one_runtime
async def test_a_session_that_ends_while_it_wakes_has_ended(runtime: str) -> None:
    async with make_manager(runtime, max_kernels=2) as manager:
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            await run(manager, session, SLOW_TO_LOAD)
        assert await manager.hibernate("agent")

        async def wake() -> str:
            async with manager.acquire_kernel("agent", timeout=60) as (_kernel, woken):
                return woken.session_id

        waking = asyncio.create_task(wake())
        await asyncio.sleep(1.0)
        assert await manager.end_session("agent")
        assert await waking == session.session_id
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, fresh):
            assert fresh.session_id != session.session_id
            assert (await manager.execute_code(fresh, "slow"))["error"]["ename"] == "NameError"


@pytest.mark.one_runtime
async def test_forks_at_the_same_time_are_all_different(runtime: str) -> None:
    async with one_session(runtime, max_kernels=2) as (manager, session):
        await run(manager, session, "x = 'root'")
        both = await asyncio.gather(manager.fork(session, 2), manager.fork(session, 2))
        forks = [fork for made in both for fork in made]
        assert {fork.agent_id for fork in forks} == {"agent~1", "agent~2", "agent~3", "agent~4"}
        for fork in forks:
            assert (await run(manager, fork, "x"))["result"] == "'root'"


@pytest.mark.one_runtime
async def test_a_shutdown_that_keeps_sessions_does_not_wait_for_cells_that_wait(runtime: str) -> None:
    """The running cell has its grace period; the one behind it is refused; the state is there for the next process."""
    async with make_manager(runtime) as manager, manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        running = asyncio.create_task(run(manager, session, "import time; time.sleep(1); x = 'kept'"))
        await asyncio.sleep(0.3)
        waiting = asyncio.create_task(manager.execute_code(session, "time.sleep(20)"))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        await manager.shutdown(keep_sessions=True)
        assert time.monotonic() - begun < 10
        await running
        with pytest.raises(SessionEndedError):
            await waiting
    async with one_session(runtime) as (manager, again):
        assert again.session_id == session.session_id
        assert (await run(manager, again, "x"))["result"] == "'kept'"


async def test_a_kernel_that_hung_up_is_not_in_the_way_of_others_places(runtime: str) -> None:
    """The least recently used session is dead, and its end takes a while: the next one gives way meanwhile."""
    async with make_manager(runtime, max_kernels=2) as manager:
        async with manager.acquire_kernel("hostile", timeout=60) as (_kernel, session):
            await run(manager, session, HANGS_UP)
        async with manager.acquire_kernel("idle", timeout=60) as (_kernel, session):
            await run(manager, session, "x = 'idle'")
        await asyncio.sleep(0.5)
        async with manager.acquire_kernel("third", timeout=4) as (_kernel, session):
            await run(manager, session, "1")
        async with manager.acquire_kernel("idle", timeout=60) as (_kernel, session):
            assert (await run(manager, session, "x"))["result"] == "'idle'"
