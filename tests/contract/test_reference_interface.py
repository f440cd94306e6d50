"""The reference's interface, as its users know it: defaults, messages, attributes."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest

from orchestrator import (
    AgentKernelManager,
    KernelPool,
    KernelPoolExhaustedError,
    KernelResource,
    KernelResourceLimits,
    KernelSession,
)
from orchestrator.errors import InvalidInputError, UnknownKernelNameError


def test_the_limits_defaults() -> None:
    """80 % of a core, 1024 MB, 30 s, 10 MB, 300 s."""
    limits = KernelResourceLimits()
    assert (limits.max_cpu_percent, limits.max_memory_mb, limits.max_execution_time) == (80.0, 1024, 30.0)
    assert (limits.max_output_size_mb, limits.idle_timeout_seconds) == (10, 300.0)


def test_the_default_policy_has_the_same_limits() -> None:
    """A manager without limits of its own has the reference's."""
    assert AgentKernelManager().resource_limits == KernelResourceLimits()


async def test_a_resource_is_taken_and_given_back() -> None:
    """acquire and release say when they cannot be; the context manager pairs them."""
    kernel = KernelResource("k")
    assert kernel.is_available
    assert not kernel.is_shutting_down
    assert kernel.created_at <= time.time()
    assert kernel.last_used_at is None
    kernel.acquire()
    assert kernel.last_used_at is not None
    with pytest.raises(RuntimeError, match="Kernel is not available"):
        kernel.acquire()
    kernel.release()
    with pytest.raises(RuntimeError, match="Kernel is already available"):
        kernel.release()
    async with kernel as same:
        assert same is kernel
        assert not kernel.is_available
    assert kernel.is_available


async def test_a_pool_hands_out_what_was_added() -> None:
    """Ids are unique, the count follows, and an empty pool times out with its typed error."""
    pool = KernelPool(max_kernels=2)
    assert (pool.max_kernels, pool.kernels, pool.available_count) == (2, {}, 0)
    pool.add_kernel(KernelResource("kernel-1"))
    pool.add_kernel(KernelResource("kernel-2"))
    with pytest.raises(ValueError, match="Kernel with ID kernel-1 already exists"):
        pool.add_kernel(KernelResource("kernel-1"))
    first, second = await pool.acquire(), await pool.acquire()
    assert {first.kernel_id, second.kernel_id} == {"kernel-1", "kernel-2"}
    assert pool.available_count == 0
    with pytest.raises(KernelPoolExhaustedError):
        await pool.acquire(timeout=0.05)
    pool.release(first)
    assert pool.available_count == 1


async def test_waiters_are_served_in_their_order() -> None:
    """Whoever asked first gets the first kernel that is given back; one that gave up is passed over."""
    pool = KernelPool(max_kernels=1)
    pool.add_kernel(KernelResource("k"))
    held = await pool.acquire()
    order: list[str] = []

    async def wait(name: str) -> None:
        kernel = await pool.acquire(timeout=5)
        order.append(name)
        pool.release(kernel)

    tasks = [asyncio.create_task(wait(name)) for name in ("a", "b", "c")]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    pool.release(held)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["a", "c"]
    assert pool.available_count == 1


async def test_a_waiter_cancelled_at_the_moment_of_its_turn_loses_no_kernel() -> None:
    """A kernel that was handed to a caller who is gone goes back."""
    pool = KernelPool(max_kernels=1)
    pool.add_kernel(KernelResource("k"))
    held = await pool.acquire()
    task = asyncio.create_task(pool.acquire())
    await asyncio.sleep(0)
    pool.release(held)  # sets the waiter's result
    task.cancel()  # before the task could take it
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.available_count == 1


def test_a_session_keeps_its_history() -> None:
    """add_execution appends; checkpoint notes the history as it is then."""
    session = KernelSession(session_id="s", kernel_id="k", agent_id="a")
    assert session.created_at <= time.time()
    assert (session.last_checkpoint, session.execution_history) == (None, [])
    session.add_execution("x = 10", {"status": "ok"})
    session.add_execution(code="y = 20", result={"status": "ok"})
    session.checkpoint()
    session.add_execution("z", {"status": "ok"})
    assert session.last_checkpoint is not None
    assert session.checkpoint_data is not None
    assert [entry["code"] for entry in session.checkpoint_data["execution_history"]] == ["x = 10", "y = 20"]
    assert set(session.execution_history[0]) == {"timestamp", "code", "result"}


def test_checkpoints_travel_as_dict_and_as_file(tmp_path: Path) -> None:
    """Saved and restored history is the same, either way; a damaged one changes nothing."""
    manager = AgentKernelManager()
    session = KernelSession(session_id="s", kernel_id="k", agent_id="a")
    session.add_execution("x = 10", {"status": "ok"})
    saved = manager.save_checkpoint(session, tmp_path / "checkpoint.json")
    assert set(saved) == {"session_id", "kernel_id", "agent_id", "checkpoint_time", "execution_history"}
    assert json.loads((tmp_path / "checkpoint.json").read_text()) == saved
    sources: list[dict[str, Any]] = [{"checkpoint_data": saved}, {"file_path": tmp_path / "checkpoint.json"}]
    for source in sources:
        fresh = KernelSession(session_id="n", kernel_id="k2", agent_id="a")
        manager.restore_checkpoint(fresh, **source)
        assert fresh.execution_history == session.execution_history
    (tmp_path / "torn.json").write_text('{"session_id": "s"')
    damaged: list[dict[str, Any]] = [
        {"checkpoint_data": {}},
        {"checkpoint_data": saved | {"execution_history": [1]}},
        {},
        {"file_path": tmp_path / "torn.json"},
    ]
    for bad in damaged:
        with pytest.raises(InvalidInputError):
            manager.restore_checkpoint(session, **bad)
    assert len(session.execution_history) == 1


def test_a_session_becomes_a_valid_notebook(tmp_path: Path) -> None:
    """All output types are nbformat-valid, and two saves of one session are the same file."""
    session = KernelSession(session_id="s", kernel_id="k", agent_id="a")
    outputs = [
        {"type": "stream", "output_type": "stream", "name": "stdout", "text": "x"},
        {"type": "execute_result", "output_type": "execute_result", "data": {"text/plain": "1"}, "metadata": {},
         "execution_count": 1},
        {"type": "display_data", "output_type": "display_data", "data": {"text/html": "<b>"}, "metadata": {}},
        {"type": "error", "output_type": "error", "ename": "E", "evalue": "v", "traceback": ["t"]},
    ]  # fmt: skip
    session.add_execution("1", {"status": "ok", "outputs": outputs, "execution_count": 1})
    session.add_execution("2", {"status": "error", "outputs": [], "error": {"ename": "KernelDied", "evalue": "x"}})
    manager = AgentKernelManager()
    for name in ("a.ipynb", "b.ipynb"):
        manager.save_session_as_notebook(session, tmp_path / name, "A title")
    assert (tmp_path / "a.ipynb").read_bytes() == (tmp_path / "b.ipynb").read_bytes()
    notebook = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source == "# A title"
    assert [output.output_type for output in notebook.cells[1].outputs] == [
        "stream", "execute_result", "display_data", "error"
    ]  # fmt: skip
    assert notebook.cells[2].outputs[0].ename == "KernelDied"


def test_a_manager_is_made_without_an_engine() -> None:
    """Making one starts nothing; a kernel name that the image does not have is refused."""
    manager = AgentKernelManager(max_kernels=5)
    assert manager.max_kernels == 5
    assert isinstance(manager.pool, KernelPool)
    assert manager.sessions == {}
    assert isinstance(manager.resource_limits, KernelResourceLimits)
    with pytest.raises(UnknownKernelNameError, match="python3"):
        AgentKernelManager(kernel_name="julia")
    with pytest.raises(ValueError, match="max_kernels"):
        AgentKernelManager(max_kernels=0)
