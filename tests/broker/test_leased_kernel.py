"""What ``acquire_kernel`` yields: an ``AsyncKernelManager`` in what its users call on it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from jupyter_client.manager import AsyncKernelManager

from orchestrator import AgentKernelManager, InvalidInputError
from orchestrator.broker.leasedkernel import LeasedKernel
from tests.conftest import make_manager

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def manager(runtime: str) -> AsyncIterator[AgentKernelManager]:
    async with make_manager(runtime) as manager:
        yield manager


async def printed(kernel: LeasedKernel, code: str) -> str:
    """Run a cell with the kernel's own client, and return what it prints."""
    client = kernel.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=30)
        texts: list[str] = []
        await client.execute_interactive(
            code, timeout=30, output_hook=lambda message: texts.append(message["content"].get("text", ""))
        )
        return "".join(texts)
    finally:
        client.stop_channels()


async def test_a_stock_client_runs_cells_of_the_session(manager: AgentKernelManager) -> None:
    async with manager.acquire_kernel("client", timeout=60) as (kernel, session):
        assert isinstance(kernel, AsyncKernelManager)
        await manager.execute(session, "x = 'of the host'")
        assert await printed(kernel, "print(x)") == "of the host\n"
        assert [entry["code"] for entry in await session.history()] == ["x = 'of the host'", "print(x)"]
    await manager.end_session("client")


async def test_interrupt_restart_and_shutdown(manager: AgentKernelManager, tmp_path: Path) -> None:
    """They do what jupyter_client's do; a restart keeps the files, and the clients that are connected."""
    async with manager.acquire_kernel("life", timeout=60) as (kernel, session):
        assert await kernel.is_alive()
        cell = asyncio.create_task(manager.execute(session, "x = 1\nwhile True: pass"))
        await asyncio.sleep(0.5)
        await kernel.interrupt_kernel()
        assert (await cell).outcome == "interrupted"
        cell = asyncio.create_task(manager.execute(session, "while True: pass"))
        await asyncio.sleep(0.5)
        await kernel.signal_kernel(signal.SIGINT)
        assert (await cell).outcome == "interrupted"
        client = kernel.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=30)
            await manager.put_file(session, b"kept", "kept.txt")
            before = kernel.kernel_id
            await kernel.restart_kernel()
            assert kernel.kernel_id != before
            request = client.execute("print(open('kept.txt').read(), 'x' in globals())")
            states: list[str] = []
            texts: list[str] = []
            while not texts:
                message = await client.get_iopub_msg(timeout=30)
                states.append(message["content"].get("execution_state"))
                if message["parent_header"].get("msg_id") == request and message["msg_type"] == "stream":
                    texts.append(message["content"]["text"])
            assert texts == ["kept False\n"]
            assert "starting" in states
        finally:
            client.stop_channels()
        with pytest.raises(InvalidInputError):
            await kernel.signal_kernel(signal.SIGUSR1)
        await kernel.shutdown_kernel(now=True)
        assert not await kernel.is_alive()
    assert "life" not in manager.sessions


async def test_its_sockets_are_private_and_go_with_the_context(manager: AgentKernelManager) -> None:
    async with manager.acquire_kernel("private", timeout=60) as (kernel, _session):
        kernel.client()
        folder = Path(kernel.ip).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(list(folder.iterdir())) == 5
    assert not folder.exists()
    with pytest.raises(InvalidInputError):
        kernel.client()
    await manager.end_session("private")


SYNCHRONOUS = """
from cellblock.sync import Manager
with Manager(1) as manager, manager.acquire_kernel("blocking", timeout=60) as (kernel, _session):
    client = kernel.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=30)
    print(client.execute_interactive("print('shown')", timeout=30)["content"]["status"])
    client.stop_channels()
"""


async def test_a_synchronous_program_gets_a_blocking_client(runtime: str) -> None:
    """The event loop of the synchronous manager opens the sockets for the program's own thread."""
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SYNCHRONOUS, env=os.environ | {"CELLBLOCK_RUNTIME": runtime}, stdout=subprocess.PIPE
    )
    printed_by_program, _ = await asyncio.wait_for(program.communicate(), 120)
    assert (program.returncode, printed_by_program.split()) == (0, [b"shown", b"ok"])
