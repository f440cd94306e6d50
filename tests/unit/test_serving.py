"""The server's own socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import time

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from orchestrator.server.boundary import BrokenOffError
from orchestrator.server.looplag import LoopLag
from orchestrator.server.service import Service
from orchestrator.server.serving import Address, _bind, _is_news, _Server
from orchestrator.server.websocketprotocol import WebSocketProtocol
from orchestrator.settings import Settings


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


def test_uvicorn_logs_no_address() -> None:
    """It writes a WebSocket's address, with a token in it, at INFO, and its headers at DEBUG."""

    def record(level: int, error: BaseException | None = None) -> logging.LogRecord:
        info = None if error is None else (type(error), error, None)
        return logging.LogRecord("uvicorn.error", level, "", 0, "x", (), info)

    assert [_is_news(record(level)) for level in (logging.DEBUG, logging.INFO)] == [False, False]
    assert [_is_news(record(logging.ERROR, each)) for each in (None, BrokenOffError())] == [True, False]


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Impatient(WebSocketProtocol):
    patience = 0.2


async def test_a_websocket_that_is_not_read_is_broken_off() -> None:
    """Also after the server has closed it: what is left of its last message does not stay in memory."""

    sent = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        sent.set()
        await send({"type": "websocket.send", "bytes": b"x" * 20_000_000})

    state = ServerState()
    config = uvicorn.Config(app, ws_ping_interval=None, log_config=None)
    config.load()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Impatient(config, state, {}), "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)  # reads ahead no more than that
        writer.write(HANDSHAKE)
        async with asyncio.timeout(20):
            await sent.wait()
            while state.connections:
                await asyncio.sleep(0.05)
        assert len(await reader.read()) < 20_000_000
        writer.close()
        await writer.wait_closed()


async def test_a_server_that_serves_has_frozen_what_is_loaded() -> None:
    """Full collections then pass over it; and what held the loop up before is not counted."""

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        pass

    before, seen = gc.get_freeze_count(), list[int]()
    service = Service(Settings())
    service.lag.longest = 1.0
    config = uvicorn.Config(app, log_config=None, lifespan="off")
    config.load()
    server = _Server(config, service, lambda: seen.append(gc.get_freeze_count()))
    server.lifespan = config.lifespan_class(config)
    listening = _bind(Address(port=0))
    try:
        await server.startup([listening])
        assert seen[0] > before + 50_000
        assert service.lag.longest == 0.0
    finally:
        await server.shutdown([listening])
        gc.unfreeze()


async def test_what_the_server_computes_is_told_from_waiting() -> None:
    """A callback that computes for 0.3 s holds the loop up by as much, and all of it is computing."""
    lag = LoopLag()
    looking = asyncio.create_task(lag.run())
    await asyncio.sleep(0.1)
    until = time.thread_time() + 0.3
    while time.thread_time() < until:
        pass
    await asyncio.sleep(0.1)
    looking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await looking
    assert 0.25 < lag.computing <= lag.longest
    lag.begin()
    assert lag.computing == lag.longest == 0.0
