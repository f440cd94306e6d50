"""LeasedKernel: what ``acquire_kernel`` yields, jupyter_client's kernel manager of a sandboxed kernel that runs."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
from pathlib import Path
from typing import Any, Protocol

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager

from orchestrator.broker.broker import Broker
from orchestrator.broker.sessioncalls import SessionCalls
from orchestrator.broker.zmqfront import ZmqFront
from orchestrator.errors import InvalidInputError
from orchestrator.kernel.kernel import Kernel
from orchestrator.sessions.session import KernelSession

_CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
_PATIENCE = 30.0  # seconds in which another thread's event loop must open the sockets


class KernelCalls(SessionCalls, Protocol):
    """What a leased kernel calls of the manager beside what the broker does."""

    async def restart_kernel(self, session: KernelSession) -> None: ...

    async def end_session(self, agent_id: str) -> bool: ...


class LeasedKernel(AsyncKernelManager):
    """An ``AsyncKernelManager`` of jupyter_client whose kernel is the agent's, and runs already.

    ``client()`` returns a stock asynchronous client, and ``blocking_client()`` one for other threads. What they execute
    is a cell of the session. The clients' sockets exist while the ``acquire_kernel`` context is open.

    Args:
        folder: where the sockets will be; it does not exist yet.
    """

    def __init__(self, calls: KernelCalls, session: KernelSession, folder: Path) -> None:
        super().__init__(kernel_name="python3", transport="ipc", cache_ports=False)
        self._calls = calls
        self._leased = session
        self._last = session.live_kernel()
        self._home = asyncio.get_running_loop()
        self._folder = folder
        self._broker: Broker | None = None
        self._front: ZmqFront | None = None
        self._left = False
        self._works: set[asyncio.Task[None]] = set()

    # The sandbox

    @property
    def kernel_id(self) -> str:  # type: ignore[override]
        """The id of the kernel, which a restart changes."""
        return self._leased.kernel_id

    @property
    def runtime(self) -> str:
        """The container runtime that it runs under, such as "runsc"."""
        return self._sandboxed.runtime

    @property
    def container_name(self) -> str:
        """The name of its container, or of its last one."""
        return self._sandboxed.container_name

    @property
    def _sandboxed(self) -> Kernel:
        self._last = self._leased.kernel or self._last
        return self._last

    # Clients

    def client(self, **kwargs: Any) -> AsyncKernelClient:  # type: ignore[override]
        """Return a client of jupyter_client's, not yet connected: call ``start_channels`` and ``wait_for_ready``.

        Raises:
            InvalidInputError: the ``acquire_kernel`` context was left.
        """
        self._open()
        return super().client(**kwargs)

    def blocking_client(self, **kwargs: Any) -> BlockingKernelClient:
        """Return a blocking client, for a thread that is not the event loop's. See ``client``."""
        self._open()
        info = self.get_connection_info(session=True)
        return BlockingKernelClient(**info, **kwargs)

    def _open(self) -> None:
        """Open the sockets, from any thread."""
        if self._left:
            raise InvalidInputError("the kernel's context was left: its clients have no sockets any more.")
        try:
            inside = asyncio.get_running_loop() is self._home
        except RuntimeError:
            inside = False
        if inside:
            self._bind()
        else:
            asyncio.run_coroutine_threadsafe(_called(self._bind), self._home).result(_PATIENCE)

    def _bind(self) -> None:
        if self._front is not None:
            return
        self._folder.mkdir(mode=0o700)
        self.ip = str(self._folder / "b")
        for number, channel in enumerate(_CHANNELS, start=1):
            setattr(self, f"{channel}_port", number)
        self.session.key = secrets.token_hex(32).encode()
        self._broker = Broker(self._calls, self._leased, self._asked_to_shut_down)
        self._front = ZmqFront(self._broker, self.get_connection_info())
        self._broker.announce("idle")

    def _asked_to_shut_down(self, restart: bool) -> None:
        work = self._home.create_task(self.shutdown_kernel(restart=restart))
        self._works.add(work)
        work.add_done_callback(self._works.discard)

    async def close(self) -> None:
        """Close the clients' sockets. Called when the ``acquire_kernel`` context is left."""
        self._left = True
        if self._front is not None and self._broker is not None:
            await self._front.close()
            await self._broker.close()
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    # Its life, as jupyter_client has it

    @property
    def has_kernel(self) -> bool:
        """Whether the session has a kernel, or gets one with its next cell."""
        return self._leased.ended is None

    async def is_alive(self) -> bool:  # type: ignore[override]
        """Return whether the session's kernel lives. A session that sleeps has one with its next cell."""
        kernel = self._leased.kernel
        return self.has_kernel and (kernel is None or kernel.is_alive)

    async def start_kernel(self, **_kwargs: Any) -> None:  # type: ignore[override]
        """Do nothing: the kernel runs."""

    async def interrupt_kernel(self) -> None:  # type: ignore[override]
        """Raise KeyboardInterrupt in the running cell."""
        self._calls.interrupt(self._leased)

    async def restart_kernel(self, now: bool = False, newports: bool = False, **_kwargs: Any) -> None:  # type: ignore[override]
        """Give the session a fresh kernel, without its variables. The files of ``/work`` and all clients stay.

        Raises:
            See ``AgentKernelManager.restart_kernel``.
        """
        await self._calls.restart_kernel(self._leased)
        if self._broker is not None:
            self._broker.restarted(self._leased)

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:  # type: ignore[override]
        """End the session; with ``restart``, do what ``restart_kernel`` does."""
        if restart:
            await self.restart_kernel()
        else:
            await self._calls.end_session(self._leased.agent_id)

    async def signal_kernel(self, signum: int) -> None:  # type: ignore[override]
        """Interrupt the cell with SIGINT; end the session with SIGTERM or SIGKILL.

        Raises:
            InvalidInputError: it is another signal.
        """
        if signum == signal.SIGINT:
            await self.interrupt_kernel()
        elif signum in (signal.SIGTERM, signal.SIGKILL):
            await self.shutdown_kernel()
        else:
            raise InvalidInputError(f"a sandboxed kernel takes SIGINT, SIGTERM and SIGKILL, not signal {signum}.")

    async def cleanup_resources(self, restart: bool = False) -> None:  # type: ignore[override]
        """Do nothing: leaving the ``acquire_kernel`` context does it."""


async def _called(function: Any) -> None:
    function()
