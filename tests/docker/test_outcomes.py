"""Every cell ends in exactly one way, and the host's evidence says so: a table of cells, under each runtime."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager, CellFinished, ExecutionResult, KernelResourceLimits, KernelTimeoutError
from orchestrator.sessions.session import KernelSession
from tests.conftest import make_manager
from tests.docker.hostile_cells import CELLS, Ending, HostileCell

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = KernelResourceLimits(max_execution_time=2, max_memory_mb=256, max_output_size_mb=1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AgentKernelManager]:
    policy = tmp_path_factory.mktemp("policy") / "small.toml"
    policy.write_text("[limits]\nmemory_mb = 256\npids = 64\n[tmpfs]\nwork_mb = 32\ntmp_mb = 32\nshm_mb = 16\n")
    async with make_manager(runtime, limits=LIMITS, max_kernels=3, warm=1, policy=str(policy)) as manager:
        yield manager


async def result_of(manager: AgentKernelManager, session: KernelSession, code: str) -> ExecutionResult:
    try:
        async for event in manager.stream_code(session, code):
            if isinstance(event, CellFinished):
                return event.result
    except KernelTimeoutError as error:
        return error.result
    raise AssertionError("the stream ended without a result")


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=pytest.mark.alone if cell.heavy else (), id=cell.name) for cell in CELLS]
)
async def test_a_cell_ends_as_it_must(manager: AgentKernelManager, runtime: str, cell: HostileCell) -> None:
    """Outcome, error, evidence and the kernel's state are those of the table; a live kernel has its variables."""
    ending = cell.ending_under(runtime)
    alone = cell.alone or ending.kernel == "dead"
    agent = f"agent-{cell.name}" if alone else "agent"
    try:
        async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
            await manager.execute_code(session, "kept = 'here'")
            result = await asyncio.wait_for(result_of(manager, session, cell.code), 30)
            check(result, ending)
            assert session.execution_history[-1]["result"]["outcome"] == ending.outcome
            if ending.kernel == "idle":
                after = await result_of(manager, session, "kept")
                assert (after.outcome, after.result) == ("ok", "'here'")
        if ending.kernel == "dead":
            async with manager.acquire_kernel(agent, timeout=60) as (_kernel, session):
                assert session.previous_end == ending.outcome
    finally:
        if alone:
            await manager.end_session(agent)


def check(result: ExecutionResult, ending: Ending) -> None:
    evidence = result.evidence
    assert (result.outcome, result.kernel_state) == (ending.outcome, ending.kernel), result
    assert result.status == ("ok" if ending.outcome == "ok" else "error")
    assert (None if result.error is None else result.error.ename) == ending.error
    assert not ending.exits or evidence.exit_code in ending.exits
    assert evidence.signal == (ending.signal if ending.exits and evidence.exit_code else _signal_of(evidence.exit_code))
    assert evidence.oom_kills >= ending.killed
    assert bool(evidence.oom_kills) == bool(ending.killed)
    assert (result.truncated is not None) == ending.missing
    assert bool(evidence.interrupts) == ending.interrupted
    assert ending.stdout is None or result.stdout == ending.stdout
    if result.kernel_state == "idle":  # a cgroup may be gone with its container before it could be read once more
        assert evidence.cpu_s is not None
        assert evidence.peak_memory_mb is not None
    assert evidence.cpu_s is None or 0 <= evidence.cpu_s < 2 * result.duration_s
    assert evidence.peak_memory_mb is None or 20 < evidence.peak_memory_mb < 257


def _signal_of(exit_code: int | None) -> str | None:
    return None if exit_code is None or exit_code <= 128 else signal.Signals(exit_code - 128).name
