"""The subjects of the benchmarks: a stock local ipykernel with a stock client, and kernels of Cellblock."""

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
READY = 60.0  # seconds until a kernel must be ready
MESSAGE = 60.0  # seconds between two messages of a kernel

Run = Callable[[str], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Stock:
    """A local kernel over ipc, started by ``jupyter_client``."""

    manager: AsyncKernelManager
    client: AsyncKernelClient

    async def run(self, code: str) -> None:
        """Run one cell and receive all its output, until its reply and its idle message."""
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
    """Start a stock kernel, and shut it down when the context ends."""
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
    """Return a data folder for this run, so that it does not wake sessions of other runs."""
    return str(_own_folder() / runtime)


@functools.cache
def _own_folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="cellblock-bench-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def manager_on(
    runtime: str, *, warm: int = 0, kernels: int = 2, output_mb: float = 10, policy: str = "default"
) -> AgentKernelManager:
    """Return a manager whose kernels may use one core each, as much as the baseline can use."""
    chosen = {"runtime": runtime, "warm_kernels": warm, "policy": policy, "data_dir": data_folder(runtime)}
    settings = Settings.load().model_copy(update=chosen)
    limits = KernelResourceLimits(max_cpu_percent=100, max_output_size_mb=output_mb, max_execution_time=300)
    return AgentKernelManager(max_kernels=kernels, settings=settings, resource_limits=limits)


def runner(manager: AgentKernelManager, session: KernelSession) -> Run:
    """Return a function that runs one cell of the session and checks that it succeeds without truncation."""

    async def run(code: str) -> None:
        result = await manager.execute_code(session, code)
        assert (result["status"], result["truncated"]) == ("ok", None), result

    return run


@asynccontextmanager
async def sandboxed_kernel(runtime: str, *, output_mb: float = 10) -> AsyncIterator[Run]:
    """Start a kernel under a runtime, and yield a function that runs one cell in it."""
    async with (
        manager_on(runtime, output_mb=output_mb) as manager,
        manager.acquire_kernel("bench", timeout=READY) as (_kernel, session),
    ):
        yield runner(manager, session)


def engine_runtimes() -> list[str]:
    """Return runc, and runsc if the engine has it."""
    client = connect(30)
    try:
        return ["runc"] if gvisor_fault(client.info()["Runtimes"]) else ["runc", "runsc"]
    finally:
        client.close()
