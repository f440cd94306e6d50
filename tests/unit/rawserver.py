"""RawServer: a server that answers with bytes of a test, whatever it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from orchestrator.limits import MIB


class RawServer:
    """Answers every request with the same bytes.

    Args:
        ends: whether it closes the connection then.

    Attributes:
        heard: what the clients have sent.
        closed: how many connections are over.
    """

    def __init__(self, answer: bytes = b"", *, ends: bool = True) -> None:
        self.answer = answer
        self.ends = ends
        self.heard = bytearray()
        self.closed = 0
        self._serving: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def at(self, place: Path | ssl.SSLContext | None = None) -> AsyncIterator[str]:
        """Listen, on a unix socket, with TLS or in clear text, and yield the address."""
        if isinstance(place, Path):
            server = await asyncio.start_unix_server(self._serve, place)
        else:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=place)
        scheme = "http" if place is None else "https"
        address = "http://unix" if isinstance(place, Path) else f"{scheme}://localhost:{_port(server)}"
        try:
            yield address
        finally:
            server.close()
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            while self.answer and (piece := await reader.read(MIB)):
                self.heard += piece
                if b"\r\n\r\n" in piece:
                    writer.write(self.answer)
                    await writer.drain()
                    if self.ends:
                        return
            if not self.answer:
                await asyncio.Event().wait()  # and reads nothing
        except OSError:
            pass
        finally:
            self.closed += 1
            writer.close()


def _port(server: asyncio.Server) -> int:
    return int(server.sockets[0].getsockname()[1])


def said(content: bytes, status: str = "200 OK", *head: str) -> bytes:
    """Return an answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", *head]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content
