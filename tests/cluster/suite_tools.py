"""The manager's own tests of tools, run over a cluster: the same calls, types and errors.

The tests are those of ``tests/docker/test_tools.py``; only the manager is another. Those that are missing need a
manager's insides, or settings of their own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from orchestrator.cluster.clustermanager import ClusterKernelManager
from orchestrator.remote.remotesession import RemoteSession
from tests.docker.test_tools import (
    TOOLS,
    test_a_call_returns_its_result,
    test_a_call_that_fails_raises_inside,
    test_a_plain_function_runs_in_a_thread,
    test_a_tool_cannot_run_a_cell_of_its_own_session,
    test_an_error_can_be_caught_and_says_its_kind,
    test_an_interrupt_reaches_the_tool,
    test_cancelling_the_call_cancels_its_tools,
    test_no_tool_runs_after_its_cell,
    test_schemas_that_cannot_be_used,
    test_the_clock_stops_while_a_tool_runs,
    test_tools_that_cannot_be_offered,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def session(manager: ClusterKernelManager) -> AsyncIterator[RemoteSession]:
    """A session whose cells may call the tools of this process."""
    async with manager.acquire_kernel("agent", timeout=60, tools=TOOLS) as (_kernel, session):
        await manager.execute(session, "import tools, asyncio, threading, time")
        yield session
