"""What a policy says of the pool, on real kernels: quotas, refusals, and kernels that wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from orchestrator import AgentKernelManager, KernelPoolExhaustedError
from orchestrator.errors import InvalidInputError
from tests.conftest import make_manager


def policy(folder: Path, text: str) -> str:
    file = folder / "policy.toml"
    file.write_text(text)
    return str(file)


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def run(manager: AgentKernelManager, agent: str, code: str, group: str | None = None) -> str | None:
    async with manager.acquire_kernel(agent, timeout=60, group=group) as (_kernel, session):
        return str((await manager.execute_code(session, code))["result"])


@pytest.mark.one_runtime
async def test_a_group_at_its_quota_lets_its_own_session_sleep(runtime: str, tmp_path: Path) -> None:
    """And no other group's, though that was used less recently; the sleeper's group is known when it wakes."""
    rules = policy(tmp_path, "[groups.small]\nquota = 1\n")
    async with make_manager(runtime, max_kernels=4, policy=rules) as manager:
        await run(manager, "other", "x = 0; x", "large")
        await run(manager, "first", "x = 1; x", "small")
        assert await run(manager, "second", "x = 2; x", "small") == "2"
        assert set(manager.sessions) == {"other", "second"}
        assert await run(manager, "first", "x", "small") == "1"
        assert set(manager.sessions) == {"other", "first"}
        async with manager.acquire_kernel("first"):
            with pytest.raises(KernelPoolExhaustedError) as caught:
                async with manager.acquire_kernel("third", timeout=0.5, group="small"):
                    pass
        assert caught.value.reason == "quota"


@pytest.mark.alone
@pytest.mark.one_runtime
async def test_with_the_strategy_fail_an_idle_session_makes_room_and_a_busy_one_refuses(
    runtime: str, tmp_path: Path
) -> None:
    rules = policy(tmp_path, '[pool]\nexhausted = "fail"\nwarm = 0\n')
    async with make_manager(runtime, max_kernels=1, policy=rules) as manager:
        await run(manager, "idle", "x = 1")
        async with manager.acquire_kernel("busy", timeout=60):
            begun = time.monotonic()
            with pytest.raises(KernelPoolExhaustedError) as caught:
                async with manager.acquire_kernel("late", timeout=60):
                    pass
            assert time.monotonic() - begun < 2
            assert caught.value.reason == "max_kernels"


async def test_a_waiting_kernel_that_is_stuck_is_replaced(runtime: str, tmp_path: Path) -> None:
    """Its process is stopped: the wire stands, and nothing answers. The next agent gets one that works."""
    rules = policy(tmp_path, "[pool]\ncheck_every_s = 1\n")
    async with make_manager(runtime, warm=1, policy=rules) as manager:
        await until(lambda: manager.pool.available_count == 1)
        stuck = next(iter(manager.pool.kernels))
        client = docker.from_env()
        try:
            client.api.kill(f"cellblock-{stuck}", "SIGSTOP")
        finally:
            client.close()
        await until(lambda: stuck not in manager.pool.kernels)
        assert await run(manager, "agent", "6 * 7") == "42"
        assert manager.sessions["agent"].kernel_id != stuck


@pytest.mark.one_runtime
async def test_a_kernel_that_has_waited_too_long_is_replaced(runtime: str, tmp_path: Path) -> None:
    """A fresh one is ready before it goes, and works."""
    rules = policy(tmp_path, "[pool]\nmax_age_s = 1\n")
    async with make_manager(runtime, max_kernels=3, warm=1, policy=rules) as manager:
        await until(lambda: manager.pool.available_count == 1)
        old = next(iter(manager.pool.kernels))
        least = 1
        while old in manager.pool.kernels:
            least = min(least, manager.pool.available_count)
            await asyncio.sleep(0.01)
        assert least == 1
        assert await run(manager, "agent", "6 * 7") == "42"


@pytest.mark.alone
@pytest.mark.one_runtime
async def test_a_host_without_memory_for_as_many_runs_fewer(runtime: str, tmp_path: Path) -> None:
    """All memory is reserved: there is one kernel, sessions take turns with it, and the error says why."""
    rules = policy(tmp_path, f"[scheduling]\nmemory_reserve_mb = {2**24}\n")
    async with make_manager(runtime, max_kernels=3, warm=1, policy=rules) as manager:
        assert await run(manager, "a", "x = 1; x") == "1"
        assert await run(manager, "b", "x = 2; x") == "2"
        assert await run(manager, "a", "x") == "1"
        assert len(manager.pool.kernels) == 1
        async with manager.acquire_kernel("a"):
            with pytest.raises(KernelPoolExhaustedError) as caught:
                async with manager.acquire_kernel("c", timeout=0.5):
                    pass
    assert (caught.value.reason, caught.value.free_bytes) == ("memory", 0)


@pytest.mark.one_runtime
async def test_a_group_and_a_priority_are_checked(runtime: str) -> None:
    async with make_manager(runtime) as manager:
        for group, priority in (("a\nb", 0), ("a" * 201, 0), ("a", 101)):
            with pytest.raises(InvalidInputError):
                async with manager.acquire_kernel("agent", group=group, priority=priority):
                    pass
