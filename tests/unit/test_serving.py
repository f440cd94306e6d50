"""The server's own socket."""

from __future__ import annotations

import asyncio
import socket

from orchestrator.server.serving import Address, _bind


async def test_answers_are_not_held_back() -> None:
    """A connection has TCP_NODELAY: without it, the second part of each answer waited for an acknowledgement."""
    seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listening = _bind(Address(port=0))
    async with await asyncio.start_server(connected, sock=listening):
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        assert await asyncio.wait_for(seen, 5)
        await reader.read()
        writer.close()
        await writer.wait_closed()
