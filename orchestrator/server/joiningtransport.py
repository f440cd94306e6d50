"""JoiningTransport: what is written within one turn of the event loop reaches the socket in one piece.

uvicorn writes the head of an answer and its body one after the other. Each write is a system call, and may wake the
client.
"""

from __future__ import annotations

import asyncio
from typing import Any

_LARGE = 64 * 1024  # bytes that are passed on at once: asyncio then pauses the writer, and nothing large is copied


class JoiningTransport:
    """A transport of asyncio's, for one protocol. All that it does not do itself, the transport does."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write data before the event loop waits again; at once, if it is large."""
        self._size += len(data)
        if self._size < _LARGE:
            if not self._held:
                self._loop.call_soon(self._flush)
            self._held.append(data)
        else:
            self._flush()
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection once all data is sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        held, self._held, self._size = self._held, [], 0
        if held:
            self._transport.write(b"".join(held))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
