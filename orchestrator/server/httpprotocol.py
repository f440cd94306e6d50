"""HttpProtocol: uvicorn's, with a bound on the size of a request's head and on the time that it takes."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_LARGEST_HEAD = 64 * 1024  # bytes
_HEAD_TIME = 10.0  # seconds from a request's first byte, or from the connection, to the end of its head
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if not self._in_head:
            return super().data_received(data)
        if self._head_timer is None:
            self._begin_head()
        room = _LARGEST_HEAD - self._head_bytes
        self._head_bytes += len(data[:room])
        super().data_received(data[:room])
        if self._in_head and self._head_bytes >= _LARGEST_HEAD and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        elif data[room:] and not self.transport.is_closing():
            super().data_received(data[room:])

    def on_headers_complete(self) -> None:
        """Called by httptools."""
        self._end_head()
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by httptools."""
        super().on_message_complete()
        self._in_head, self._head_bytes = True, 0

    def _begin_head(self) -> None:
        self._head_timer = self.loop.call_later(_HEAD_TIME, self._give_up)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self.transport.close()
