"""Outbox: what waits for one client to read it."""

from __future__ import annotations

import asyncio
from collections import deque

from orchestrator.server.gateway.outgoing import Outgoing

_MOST = 16 * 1024 * 1024  # bytes that wait


class Outbox:
    """Messages in their order.

    Attributes:
        overflowed: whether too much waited, and was dropped. Nothing is added from then on.
    """

    def __init__(self) -> None:
        self._waiting: deque[Outgoing] = deque()
        self._bytes = 0
        self._news = asyncio.Event()
        self.overflowed = False

    def put(self, message: Outgoing) -> None:
        """Add a message. One that is larger than the bound has room if nothing else waits."""
        if self.overflowed:
            return
        self.overflowed = self._bytes > 0 and self._bytes + message.size > _MOST
        if self.overflowed:
            self._waiting.clear()
        else:
            self._waiting.append(message)
            self._bytes += message.size
        self._news.set()

    async def first(self) -> Outgoing | None:
        """Wait for the first message, and return it; None if too much waited. It stays until ``sent``."""
        while not self._waiting and not self.overflowed:
            self._news.clear()
            await self._news.wait()
        return None if self.overflowed else self._waiting[0]

    def sent(self, message: Outgoing) -> None:
        """Remove the first message."""
        if self._waiting and self._waiting[0] is message:
            self._waiting.popleft()
            self._bytes -= message.size
