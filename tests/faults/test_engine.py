"""The Docker engine dies under a running manager: its agents hear of it at once, and nothing is made up."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from orchestrator import KernelDiedError
from tests.conftest import make_manager, one_session
from tests.faults.privateengine import PrivateEngine

REPORTED = 2.0  # seconds in which a cell must have ended after its engine was killed


async def test_a_killed_engine_is_told_as_such(engine: PrivateEngine, runtime: str) -> None:
    """The running cell ends as engine_lost within 2 s, its process does not live on, and the agent hears why."""
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
            assert not kernel.is_alive
            with pytest.raises(KernelDiedError) as died:
                await manager.execute_code(session, "kept")
            assert died.value.reason == "engine_lost"
        await asyncio.to_thread(engine.ensure_running)
        async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
            assert session.previous_end == "engine_lost"
            assert (await manager.execute_code(session, "1 + 1"))["result"] == "2"


async def test_an_engine_that_hangs_is_not_gone(engine: PrivateEngine, runtime: str) -> None:
    """Stopped for 5 s: cells run on, since their wire does not go through it, and none is ended."""
    async with one_session(runtime, max_kernels=1) as (manager, session):
        engine.signal(signal.SIGSTOP)
        try:
            code = "import time; time.sleep(4); 6 * 7"
            assert (await asyncio.wait_for(manager.execute_code(session, code), 30))["result"] == "42"
        finally:
            engine.signal(signal.SIGCONT)
        assert (await manager.execute_code(session, "1 + 1"))["result"] == "2"
