"""LiveKernel: a kernel that has clients, or had some not long ago."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from orchestrator.broker.broker import Broker
from orchestrator.broker.messages import JupyterMessage, State
from orchestrator.server.directory import Directory, Served
from orchestrator.server.gateway.gatewayclient import GatewayClient
from orchestrator.server.gateway.kernelcalls import KernelCalls
from orchestrator.server.gateway.outgoing import Outgoing
from orchestrator.server.waiting import stopped

_KEPT = 60.0  # seconds for which a client without a WebSocket is kept, and longer while its cells run
_LONGEST = 3600.0  # seconds for which it is kept at most
_MOST_AWAY = 8  # clients without a WebSocket


class LiveKernel:
    """One kernel.

    Args:
        on_shutdown: called once a client has asked for the end of the kernel, with whether it asked for a restart.
        on_empty: called once the last client has gone for good.
    """

    def __init__(
        self,
        directory: Directory,
        served: Served,
        on_shutdown: Callable[[bool], None],
        on_empty: Callable[[LiveKernel], None],
    ) -> None:
        self._on_empty = on_empty
        self._calls = KernelCalls(directory, served)
        self._clients: list[GatewayClient] = []
        self.broker = Broker(self._calls, served.session, on_shutdown)
        self.broker.subscribe(self._publish)

    @property
    def served(self) -> Served:
        """The session that the kernel is, or was last."""
        return self._calls.served

    @property
    def is_over(self) -> bool:
        """Whether somebody has ended the session."""
        return self._calls.is_over

    @property
    def connections(self) -> int:
        """How many WebSockets it has."""
        return sum(client.is_connected for client in self._clients)

    @contextlib.asynccontextmanager
    async def connected(self, session_id: str) -> AsyncIterator[tuple[GatewayClient, asyncio.Event]]:
        """Yield the client of this id for one WebSocket, and what is set once the WebSocket has to end."""
        client = next((each for each in self._clients if session_id and each.session_id == session_id), None)
        if client is None:
            client = GatewayClient(session_id)
            self.broker.add(client.client)
            self._clients.append(client)
        elif client.removal is not None:
            client.removal.cancel()
            client.removal = None
        socket = client.connect()
        # JupyterLab takes no status from answers to its own questions, and would know none until the next cell.
        state: State = "busy" if self.served.session.is_busy else "idle"
        client.outbox.put(Outgoing("iopub", self.broker.maker.status(state, {})))
        try:
            yield client, socket
        finally:
            if client.owns(socket):
                client.disconnect()
                await self._leave(client)

    async def restart(self) -> None:
        """Give the session a fresh kernel, and tell all clients. Its files stay, unless the kernel was lost.

        Raises:
            See ``KernelCalls.acquire_kernel`` and ``AgentKernelManager.restart_kernel``.
        """
        was_lost = self.served.session.ended is not None
        async with self._calls.acquire_kernel(""):
            if not was_lost:
                await self.served.manager.restart_kernel(self.served.session)
        self.broker.restarted(self.served.session)

    async def close(self) -> None:
        """End all WebSockets, and what their clients run."""
        for client in list(self._clients):
            client.disconnect()
            if client.removal is not None:
                await stopped(client.removal)
        self._clients.clear()
        await self.broker.close()

    async def _leave(self, client: GatewayClient) -> None:
        """Keep a client that may come back for a while."""
        if client not in self._clients:
            return
        if not client.session_id:
            await self._remove(client)
            return
        client.removal = asyncio.get_running_loop().create_task(self._remove_later(client))
        away = [each for each in self._clients if not each.is_connected]
        for each in away[:-_MOST_AWAY]:
            if each.removal is not None:
                await stopped(each.removal)
            await self._remove(each)

    async def _remove_later(self, client: GatewayClient) -> None:
        await asyncio.sleep(_KEPT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST):
                await client.client.shell.settled()
        await self._remove(client)

    async def _remove(self, client: GatewayClient) -> None:
        if client in self._clients:
            self._clients.remove(client)
            await self.broker.drop(client.client)
            if not self._clients:
                self._on_empty(self)

    def _publish(self, message: JupyterMessage) -> None:
        outgoing = Outgoing("iopub", message)
        for client in self._clients:
            client.outbox.put(outgoing)
