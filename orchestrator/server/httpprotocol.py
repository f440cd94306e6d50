"""HttpProtocol: uvicorn's, with bounds on the size of a request's head, on what surrounds its body, and on the time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from orchestrator.server.joiningtransport import JoiningTransport

_LARGEST_HEAD = 64 * 1024  # bytes; also of trailers and of a chunk's extensions, which httptools keeps or skips
_HEAD_TIME = 10.0  # seconds from a request's first byte, or from the connection, to the end of its head
_REST_TIME = 10.0  # seconds for the rest of a request that is answered already
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """One connection. Trailers have no effect: they would come after what was decided about the request's head."""

    _head_bytes = 0
    _in_head = True
    _beside_body = 0  # bytes that came since the last part of a body
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio."""
        super().connection_made(JoiningTransport(transport, self.loop))  # type: ignore[arg-type]
        self._begin(_HEAD_TIME)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        self._end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        if not self._in_head:
            return self._receive_body(data)
        if self._head_timer is None:
            self._begin(_HEAD_TIME)
        room = _LARGEST_HEAD - self._head_bytes
        self._head_bytes += len(data[:room])
        super().data_received(data[:room])
        if self._in_head and self._head_bytes >= _LARGEST_HEAD and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        elif data[room:] and not self.transport.is_closing():
            super().data_received(data[room:])

    def _receive_body(self, data: bytes) -> None:
        self._beside_body += len(data)
        super().data_received(data)
        if self._beside_body > _LARGEST_HEAD:
            self.transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools, for trailers too."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Called by httptools, which makes a status of 400 of an error."""
        if sum(name == b"host" for name, _ in self.headers) > 1:
            raise ValueError("a proxy in front may have read the other Host header")
        self._end()
        self._in_head, self._beside_body = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Called by httptools."""
        self._beside_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Called by httptools."""
        self._end()
        super().on_message_complete()
        self._in_head, self._head_bytes, self._beside_body = True, 0, 0

    def on_response_complete(self) -> None:
        """Called by uvicorn, whose timer of an idle connection ends with the next byte."""
        super().on_response_complete()
        if not self._in_head and self.cycle.response_complete:  # else the body is that of the next request
            self._begin(_REST_TIME)

    def _begin(self, seconds: float) -> None:
        self._head_timer = self.loop.call_later(seconds, self._give_up)

    def _end(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self.transport.close()
