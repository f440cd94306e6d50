"""GatewayClient: one client of a kernel. It may outlive its WebSocket: what comes meanwhile waits for the next one."""

from __future__ import annotations

import asyncio

from orchestrator.broker.client import Client
from orchestrator.broker.messages import Channel, JupyterMessage
from orchestrator.server.gateway.outbox import Outbox
from orchestrator.server.gateway.outgoing import Outgoing


class GatewayClient:
    """One client.

    Attributes:
        session_id: what it calls itself; "": nothing, so that it cannot come back.
        client: as the broker sees it.
        outbox: what it has not been sent yet.
        removal: removes it, while it has no WebSocket.
    """

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.client = Client(self._send)
        self.outbox = Outbox()
        self.removal: asyncio.Task[None] | None = None
        self._socket: asyncio.Event | None = None

    @property
    def is_connected(self) -> bool:
        """Whether it has a WebSocket."""
        return self._socket is not None

    def connect(self) -> asyncio.Event:
        """Note that it has a new WebSocket, and end its last one. Returns what is set once this one has to end."""
        self.disconnect()
        if self.outbox.overflowed:
            self.outbox = Outbox()
        self._socket = asyncio.Event()
        return self._socket

    def disconnect(self) -> None:
        """End its WebSocket."""
        if self._socket is not None:
            self._socket.set()
        self._socket = None

    def owns(self, socket: asyncio.Event) -> bool:
        """Return whether a WebSocket is its last one."""
        return self._socket is socket

    def _send(self, channel: Channel, message: JupyterMessage) -> None:
        self.outbox.put(Outgoing(channel, message))
