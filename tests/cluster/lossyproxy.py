"""LossyProxy: a proxy before a node that loses answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


class LossyProxy:
    """Forwards connections.

    Attributes:
        target: the node's address.
        url: where it listens.
        losing: bytes of requests whose answer is lost once: its connection is closed when the answer comes.
        after: how many bytes of these answers come through.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        self.losing: list[bytes] = []
        self.after = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[LossyProxy]:
        """Listen while the context is open."""
        serving: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(reader, writer))
            serving.add(task)
            task.add_done_callback(serving.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lost = asyncio.Event()
        address = urlsplit(self.target)
        node_reader, node_writer = await asyncio.open_connection(address.hostname, address.port)

        async def requests() -> None:
            while piece := await reader.read(65536):
                for request in [each for each in self.losing if each in piece]:
                    self.losing.remove(request)
                    lost.set()
                node_writer.write(piece)
                await node_writer.drain()

        async def answers() -> None:
            passed = 0
            while piece := await node_reader.read(65536):
                if lost.is_set():
                    passed += len(piece)
                    if passed > self.after:
                        return
                writer.write(piece)
                await writer.drain()

        tasks = [asyncio.create_task(requests()), asyncio.create_task(answers())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (writer, node_writer):  # before the wait, in which this task may be cancelled
                each.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
