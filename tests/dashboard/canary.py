"""A web server on loopback that nothing may reach. It notes every request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Canary:
    """The server.

    Attributes:
        url: its address.
        pages: what it answers, by path; every other path has nothing.
        asked: the first line of each request.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []


@contextlib.asynccontextmanager
async def canary_server() -> AsyncIterator[Canary]:
    """Start the server on a free port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readline()).decode("latin-1").strip()
        if line:
            canary.asked.append(line)
        page = canary.pages.get(line.split(" ")[1] if " " in line else "", b"")
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nConnection: close\r\n"
        with contextlib.suppress(ConnectionError):
            writer.write(f"{head}Content-Length: {len(page)}\r\n\r\n".encode() + page)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    canary = Canary(server.sockets[0].getsockname()[1])
    async with server:
        yield canary
