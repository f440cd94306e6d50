"""What is compared: a stock local ipykernel with a stock client, and a kernel of Cellblock's."""

from __future__ import annotations

import atexit
import functools
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from orchestrator import AgentKernelManager, KernelResourceLimits, KernelSession, Settings
from orchestrator.container.engine import connect, gvisor_fault

BASELINE = "local ipykernel (ipc)"
READY = 60.0  # seconds in which a kernel must be ready
MESSAGE = 60.0  # seconds between two messages of a kernel

Run = Callable[[str], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Stock:
    """A plain local kernel over ipc, as ``jupyter_client`` starts it."""

    manager: AsyncKernelManager
    client: AsyncKernelClient

    async def run(self, code: str) -> None:
        """Run one cell, and take all that it puts out: until its reply, and until it is idle."""
        request = self.client.execute(code)
        while True:
            message = await self.client.get_iopub_msg(timeout=MESSAGE)
            mine = message["parent_header"].get("msg_id") == request
            if mine and message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
        reply = await self.client.get_shell_msg(timeout=MESSAGE)
        assert reply["content"]["status"] == "ok", reply

    @property
    def process(self) -> psutil.Process:
        assert isinstance(self.manager.provisioner, LocalProvisioner)
        return psutil.Process(self.manager.provisioner.pid)


@asynccontextmanager
async def stock_kernel() -> AsyncIterator[Stock]:
    manager = AsyncKernelManager(transport="ipc")
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=READY)
        yield Stock(manager, client)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        manager.cleanup_connection_file()


def data_folder(runtime: str) -> str:
    """Return one of this run alone: else a session that another has left asleep under the same name would be woken."""
    return str(_own_folder() / runtime)


@functools.cache
def _own_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="cellblock-bench-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def manager_on(
    runtime: str, *, warm: int = 0, kernels: int = 2, output_mb: float = 10, policy: str = "default"
) -> AgentKernelManager:
    """Make a manager whose kernels have a whole core each, which is all of one that the baseline can use."""
    chosen = {"runtime": runtime, "warm_kernels": warm, "policy": policy, "data_dir": data_folder(runtime)}
    settings = Settings.load().model_copy(update=chosen)
    limits = KernelResourceLimits(max_cpu_percent=100, max_output_size_mb=output_mb, max_execution_time=300)
    return AgentKernelManager(max_kernels=kernels, settings=settings, resource_limits=limits)


def runner(manager: AgentKernelManager, session: KernelSession) -> Run:
    """Return what runs one cell of a session; it must end well, and whole."""

    async def run(code: str) -> None:
        result = await manager.execute_code(session, code)
        assert (result["status"], result["truncated"]) == ("ok", None), result

    return run


@asynccontextmanager
async def sandboxed_kernel(runtime: str, *, output_mb: float = 10) -> AsyncIterator[Run]:
    async with (
        manager_on(runtime, output_mb=output_mb) as manager,
        manager.acquire_kernel("bench", timeout=READY) as (_kernel, session),
    ):
        yield runner(manager, session)


def engine_runtimes() -> list[str]:
    client = connect(30)
    try:
        return ["runc"] if gvisor_fault(client.info()["Runtimes"]) else ["runc", "runsc"]
    finally:
        client.close()
