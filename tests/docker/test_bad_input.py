"""Input that cannot be used gets its typed error, before anything runs, and changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orchestrator import AgentKernelManager
from orchestrator.errors import InvalidAgentIdError, InvalidCodeError, InvalidInputError
from tests.conftest import make_manager

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager() -> AsyncIterator[AgentKernelManager]:
    async with make_manager("runc") as manager:
        yield manager


@pytest.mark.parametrize(
    "agent_id", ["", "  ", "a" * 10_000, "../../etc", "a\\b", "a\nb", "a\x1b[31mb", "a\0b", "a\ud800", 5, None]
)
async def test_agent_ids(manager: AgentKernelManager, agent_id: str) -> None:
    """Empty, endless, path-like and unprintable ids are refused, and no kernel starts for them."""
    kernels = len(manager.pool.kernels)
    with pytest.raises(InvalidAgentIdError):
        async with manager.acquire_kernel(agent_id, timeout=5):
            pass
    assert manager.sessions.keys() <= {"agent"}
    assert len(manager.pool.kernels) == kernels


@pytest.mark.parametrize("code", ["", " \n\t", None, 5, b"1", "x" * 10_000_000, "a\0b", "'\ud800'"])
async def test_code(manager: AgentKernelManager, code: str) -> None:
    """Code that is none is refused; the kernel and its history are as they were."""
    async with manager.acquire_kernel("agent", timeout=60) as (_kernel, session):
        cells = len(session.execution_history)
        with pytest.raises(InvalidCodeError):
            await manager.execute_code(session, code)
        with pytest.raises(InvalidCodeError):
            async for _ in manager.stream_code(session, code):
                pass
        assert len(session.execution_history) == cells
        assert (await manager.execute_code(session, "6 * 7"))["result"] == "42"


@pytest.mark.parametrize("timeout", [-1, float("nan")])
async def test_timeouts(manager: AgentKernelManager, timeout: float) -> None:
    """A negative or undefined timeout is a mistake, not a wait."""
    with pytest.raises(InvalidInputError):
        async with manager.acquire_kernel("agent", timeout=timeout):
            pass


async def test_an_unknown_kernel_has_no_usage(manager: AgentKernelManager) -> None:
    """Asking for the usage of a kernel that is not there names it."""
    with pytest.raises(InvalidInputError, match="nosuch"):
        await manager.get_kernel_resource_usage("nosuch")
