"""A WebSocket at ``/api/kernels/{id}/channels``: what a client asks of its kernel, and what it gets."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from orchestrator.errors import InvalidInputError, RequestTimeoutError
from orchestrator.server.gateway.framing import V1, parse
from orchestrator.server.gateway.gatewayclient import GatewayClient
from orchestrator.server.gateway.livekernel import LiveKernel
from orchestrator.server.waiting import stopped

_LOOK = 2.0  # seconds between two looks whether the kernel was shut down
_GONE, _MALFORMED, _SLOW = (1000, "the kernel was shut down"), (1007, "malformed message"), (1013, "too slow")


class TooSlowError(Exception):
    """More waits for a client than is kept."""


async def converse(websocket: WebSocket, live: LiveKernel, client: GatewayClient, over: asyncio.Event) -> None:
    """Connect a client with its kernel, until one of them ends, or another WebSocket of the client takes its place.

    Args:
        over: set once the WebSocket has to end.
    """
    v1 = V1 in websocket.scope.get("subprotocols", ())
    await websocket.accept(V1 if v1 else None)
    tasks: set[asyncio.Future[Any]] = {
        asyncio.ensure_future(_send(websocket, client, over, v1=v1)),
        asyncio.ensure_future(_receive(websocket, live, client, v1=v1)),
        asyncio.ensure_future(over.wait()),
    }
    code, reason = _GONE
    try:
        done: set[asyncio.Future[Any]] = set()
        while not done and not live.is_over:
            done, _ = await asyncio.wait(tasks, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except (WebSocketDisconnect, RequestTimeoutError):
        return
    except InvalidInputError:
        code, reason = _MALFORMED
    except TooSlowError:
        code, reason = _SLOW
    finally:
        await stopped(*tasks)
    with contextlib.suppress(RuntimeError):  # the client was quicker
        await websocket.close(code, reason)


async def _send(websocket: WebSocket, client: GatewayClient, over: asyncio.Event, *, v1: bool) -> None:
    """Send what waits. A message that this WebSocket did not get whole is left for the next one."""
    outbox = client.outbox
    while (message := await outbox.first()) is not None:
        frame = await message.frame(v1=v1)
        if over.is_set():
            return
        await (websocket.send_text(frame) if isinstance(frame, str) else websocket.send_bytes(frame))
        if not over.is_set():
            outbox.sent(message)
    raise TooSlowError


async def _receive(websocket: WebSocket, live: LiveKernel, client: GatewayClient, *, v1: bool) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        data = message.get("bytes")
        parsed = parse(message.get("text") or "" if data is None else data, v1=v1)
        if parsed is not None:
            live.broker.take(client.client, *parsed)
        await asyncio.sleep(0)  # others have their turn, however fast a client sends
