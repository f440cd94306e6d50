"""Sessions and the pool: whose kernel is whose, how many there are, and what is said when one ends."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import docker
import pytest

from orchestrator import (
    AgentKernelManager,
    KernelDiedError,
    KernelPoolExhaustedError,
    KernelResourceLimits,
    KernelTimeoutError,
)
from orchestrator.container.hostconfig import INSTANCE_LABEL
from orchestrator.errors import ManagerClosedError, SessionEndedError
from tests.conftest import make_manager


def live_containers(instance: str) -> int:
    client = docker.from_env()
    try:
        return len(client.api.containers(filters={"label": f"{INSTANCE_LABEL}={instance}"}))
    finally:
        client.close()


async def run(manager: AgentKernelManager, agent: str, code: str) -> str | None:
    async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
        result = await manager.execute_code(session, code)
        return str(result["result"]) if result["status"] == "ok" else str(result["error"]["ename"])


async def test_an_agent_finds_its_variables_again_and_no_other_agents(runtime: str) -> None:
    """The same agent returns to its kernel; another one starts with nothing."""
    async with make_manager(runtime) as manager:
        await run(manager, "a", "x = 1")
        assert await run(manager, "b", "x") == "NameError"
        assert await run(manager, "a", "x") == "1"
        assert manager.sessions["a"].kernel_id != manager.sessions["b"].kernel_id


async def test_max_kernels_is_never_exceeded(runtime: str) -> None:
    """Eight agents over two kernels, with warm ones kept: the engine never has more than two containers of ours."""
    most = 0
    async with make_manager(runtime, max_kernels=2, warm=2) as manager:

        async def agent(name: str) -> None:
            assert await run(manager, name, "6 * 7") == "42"
            await manager.end_session(name)

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, await asyncio.to_thread(live_containers, manager.instance_id))
                await asyncio.sleep(0.05)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(agent(f"agent-{n}") for n in range(8)))
        watcher.cancel()
    assert 1 <= most <= 2


@pytest.mark.one_runtime
async def test_another_agent_waits_for_a_place_and_gets_it(runtime: str) -> None:
    """While all kernels belong to agents, another one waits; a session that ends lets it in, with a fresh kernel."""
    async with make_manager(runtime, max_kernels=1) as manager:
        await run(manager, "a", "secret = 1")
        first = manager.sessions["a"].kernel_id
        waiting = asyncio.create_task(run(manager, "b", "secret"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert await manager.end_session("a")
        assert await waiting == "NameError"
        assert manager.sessions["b"].kernel_id != first
        assert not await manager.end_session("a")


@pytest.mark.one_runtime
async def test_an_exhausted_pool_says_so_at_the_timeout(runtime: str) -> None:
    """The error comes at the timeout, with the pool's size, and takes nothing away."""
    async with make_manager(runtime, max_kernels=1) as manager:
        await run(manager, "a", "1")
        begun = time.monotonic()
        with pytest.raises(KernelPoolExhaustedError) as caught:
            async with manager.acquire_kernel("b", timeout=0.2):
                pass
        assert 0.2 <= time.monotonic() - begun < 5
        assert caught.value.max_kernels == 1
        assert isinstance(caught.value, TimeoutError)
        assert await run(manager, "a", "2") == "2"


async def test_an_idle_session_sleeps_and_wakes_with_its_state(runtime: str) -> None:
    """Past the idle timeout the kernel goes; when the agent returns it hears why, and finds its variables."""
    async with make_manager(runtime, limits=KernelResourceLimits(idle_timeout_seconds=0.5)) as manager:
        async with manager.acquire_kernel("a", timeout=60) as (kernel, session):
            await manager.execute_code(session, "x = 1")
            await asyncio.sleep(1.2)  # in use: not idle
            assert "a" in manager.sessions
        await _until(lambda: not manager.pool.kernels)
        assert session.asleep
        async with manager.acquire_kernel("a", timeout=60) as (fresh, again):
            assert again.previous_end == "idle"
            assert (again.session_id, again.restored is None) == (session.session_id, False)
            assert fresh is not kernel
            assert (await manager.execute_code(again, "x"))["result"] == "1"


@pytest.mark.one_runtime
async def test_an_idle_session_ends_where_the_policy_has_no_hibernation(runtime: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[sessions]\nhibernate = false\n")
    limits = KernelResourceLimits(idle_timeout_seconds=0.5)
    async with make_manager(runtime, limits=limits, policy=str(policy)) as manager:
        async with manager.acquire_kernel("a", timeout=60) as (_kernel, session):
            await manager.execute_code(session, "x = 1")
        await _until(lambda: not manager.pool.kernels)
        with pytest.raises(SessionEndedError, match="idle"):
            await manager.execute_code(session, "x")
        async with manager.acquire_kernel("a", timeout=60) as (_kernel, again):
            assert again.previous_end == "idle"
            assert (await manager.execute_code(again, "x"))["error"]["ename"] == "NameError"


@pytest.mark.one_runtime
async def test_warm_kernels_are_kept_and_refilled(runtime: str) -> None:
    """The pool fills up to its warm target, and again behind a lease."""
    async with make_manager(runtime, max_kernels=3, warm=1) as manager:
        await _until(lambda: manager.pool.available_count == 1)
        warm = next(iter(manager.pool.kernels))
        await run(manager, "a", "1")
        assert manager.sessions["a"].kernel_id == warm
        await _until(lambda: manager.pool.available_count == 1)
        assert len(manager.pool.kernels) == 2


async def test_a_fresh_kernel_has_no_trace_of_its_start(runtime: str) -> None:
    """The first cell is number 1, and finds no earlier output and no name of ours."""
    async with make_manager(runtime) as manager, manager.acquire_kernel("a", timeout=60) as (_kernel, session):
        code = "print(*(n for n in dir() if not n.startswith('__'))); print(repr(_), Out)"
        result = await manager.execute_code(session, code)
    assert result["execution_count"] == 1
    ipythons_own = "In Out _ _dh _i _i1 _ih _ii _iii _oh exit get_ipython open quit"
    assert result["stdout"] == f"{ipythons_own}\n'' {{}}\n"


async def _until(condition: object, seconds: float = 30) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.05)


async def test_a_warm_kernel_that_dies_is_replaced_not_handed_out(runtime: str) -> None:
    """Somebody kills the waiting container: the next agent gets another one, that works."""
    async with make_manager(runtime, max_kernels=2, warm=1) as manager:
        await _until(lambda: manager.pool.available_count == 1)
        victim = next(iter(manager.pool.kernels))
        client = docker.from_env()
        client.api.kill(f"cellblock-{victim}")
        client.close()
        await _until(lambda: victim not in manager.pool.kernels)
        assert await run(manager, "a", "6 * 7") == "42"
        assert manager.sessions["a"].kernel_id != victim


async def test_ending_a_session_ends_its_running_cell(runtime: str) -> None:
    """``end_session`` during a cell does not hang; the cell's caller is told at once."""
    async with make_manager(runtime) as manager, manager.acquire_kernel("a", timeout=60) as (_kernel, session):
        cell = asyncio.create_task(manager.execute_code(session, "import time; time.sleep(25)"))
        await asyncio.sleep(0.5)
        assert await manager.end_session("a")
        result = await asyncio.wait_for(cell, 10)
        assert result["outcome"] == "kernel_died"
        with pytest.raises(SessionEndedError, match="end_session"):
            await manager.execute_code(session, "1")


@pytest.mark.one_runtime
async def test_concurrent_calls_of_one_agent_share_one_session(runtime: str) -> None:
    """Ten tasks that acquire the same agent's kernel at once get one kernel between them."""
    async with make_manager(runtime, max_kernels=2) as manager:
        await asyncio.gather(*(run(manager, "a", f"x{n} = {n}") for n in range(10)))
        assert await run(manager, "a", "[x0, x9]") == "[0, 9]"
        assert len(manager.pool.kernels) == 1


async def test_a_cancelled_acquire_leaves_nothing(runtime: str) -> None:
    """An agent that gives up while its kernel starts takes no place away."""
    async with make_manager(runtime, max_kernels=1) as manager:
        task = asyncio.create_task(run(manager, "a", "1"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await run(manager, "b", "6 * 7") == "42"


async def test_usage_is_measured_and_real(runtime: str) -> None:
    """A kernel that holds 100 MB more is seen to hold them, and CPU time only grows."""
    async with make_manager(runtime) as manager, manager.acquire_kernel("a", timeout=60) as (_kernel, session):
        before = await manager.get_kernel_resource_usage(session.kernel_id)
        await manager.execute_code(
            session, "hold = bytearray(100 << 20)\nfor i in range(0, len(hold), 4096): hold[i] = 1"
        )
        after = await manager.get_kernel_resource_usage(session.kernel_id)
    assert after["memory_mb"] - before["memory_mb"] == pytest.approx(100, abs=25)
    assert after["memory_limit_mb"] == 1024
    assert after["cpu_seconds"] > before["cpu_seconds"] > 0
    assert after["pids"] >= 1


@pytest.mark.one_runtime
async def test_a_closed_manager_refuses(runtime: str) -> None:
    """After ``shutdown`` every call says that the manager is closed; a second shutdown is harmless."""
    manager = make_manager(runtime)
    assert await run(manager, "a", "1") == "1"  # not entered: the first acquire starts it
    session = manager.sessions["a"]
    await manager.shutdown()
    await manager.shutdown()
    with pytest.raises(ManagerClosedError):
        await run(manager, "a", "1")
    with pytest.raises((SessionEndedError, KernelDiedError)):
        await manager.execute_code(session, "1")


async def test_a_timeout_covers_the_start_of_a_kernel(runtime: str) -> None:
    """A caller with very little patience gets its error, and the kernel that was starting serves the next one."""
    async with make_manager(runtime, max_kernels=1) as manager:
        with pytest.raises(KernelPoolExhaustedError):
            async with manager.acquire_kernel("a", timeout=0.01):
                pass
        assert await run(manager, "b", "6 * 7") == "42"


@pytest.mark.one_runtime
async def test_history_records_every_cell(runtime: str) -> None:
    """Cells that ended well, in error and at their limit are all in the history, and in a checkpoint."""
    limits = KernelResourceLimits(max_execution_time=5)
    async with make_manager(runtime, limits=limits) as manager, manager.acquire_kernel("a") as (_kernel, session):
        await manager.execute_code(session, "1")
        await manager.execute_code(session, "1/0")
        with pytest.raises(KernelTimeoutError):
            await manager.execute_code(session, "while True: pass")
        outcomes = [entry["result"]["outcome"] for entry in manager.save_checkpoint(session)["execution_history"]]
    assert outcomes == ["ok", "error", "timeout"]


@pytest.mark.one_runtime
async def test_a_finished_cell_is_in_the_history_when_its_call_returns(runtime: str) -> None:
    """A checkpoint taken straight after a cell has its result, and the next cell need not wait."""
    async with make_manager(runtime) as manager, manager.acquire_kernel("a", timeout=60) as (_kernel, session):
        await manager.execute_code(session, "1")
        assert session.execution_history[0]["result"]["status"] == "ok"
        assert not session.is_busy


@pytest.mark.one_runtime
async def test_ending_idle_sessions_spares_one_whose_agent_came_back(runtime: str) -> None:
    """Two sessions become idle at once; the one that is acquired again, while the other is being ended, lives."""
    limits = KernelResourceLimits(idle_timeout_seconds=1.0)
    async with make_manager(runtime, limits=limits, max_kernels=3) as manager:
        for agent in ("a", "b"):
            await run(manager, agent, "1")
        await _until(lambda: "a" not in manager.sessions)
        async with manager.acquire_kernel("b", timeout=60) as (_kernel, session):
            await asyncio.sleep(3)
            assert (await manager.execute_code(session, "6 * 7"))["result"] == "42"


async def test_a_kernel_that_died_on_its_way_to_a_waiter_is_not_lost_capacity(runtime: str) -> None:
    """The waiter is gone, the kernel dead: its place is free for the next agent."""
    async with make_manager(runtime, max_kernels=1) as manager:
        await manager.start()
        resource = await manager.pool.acquire(timeout=60)
        client = docker.from_env()
        client.api.kill(f"cellblock-{resource.kernel_id}")
        client.close()
        await _until(lambda: resource.kernel is not None and not resource.kernel.is_alive)
        manager.pool.release(resource)
        assert await run(manager, "a", "6 * 7") == "42"
