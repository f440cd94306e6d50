"""A command over a WebSocket: what it writes and reads as binary messages, everything else as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from orchestrator.errors import CellblockError, InvalidInputError
from orchestrator.output.commandresult import CommandOutput
from orchestrator.server.answers import dumps
from orchestrator.server.problems import problem
from orchestrator.server.waiting import stopped
from orchestrator.sessions.commandhandle import RunningCommand

_STREAMS = {"stdout": b"\x01", "stderr": b"\x02"}
_LARGEST = 1024 * 1024  # bytes of one message from the client


async def converse(websocket: WebSocket, running: RunningCommand) -> None:
    """Connect a client with a command, until one of them ends. The command runs on if the client leaves.

    To the client: binary messages, of which the first byte is 1 for stdout and 2 for stderr; as JSON
    ``output_dropped``, ``command_finished``, or ``problem``. From the client: binary messages are input; as JSON
    ``{"type": "resize", "rows": …, "columns": …}``, ``{"type": "signal", "signal": …}`` and ``{"type": "eof"}``.
    """
    await websocket.accept()
    sending = asyncio.ensure_future(_send(websocket, running))
    receiving = asyncio.ensure_future(_receive(websocket, running))
    try:
        done, _ = await asyncio.wait({sending, receiving}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except WebSocketDisconnect:
        return
    except CellblockError as error:
        await websocket.send_text(dumps({"type": "problem", "problem": problem(error)}).decode())
    finally:
        await stopped(sending, receiving)
    with contextlib.suppress(RuntimeError):  # the client was quicker
        await websocket.close()


async def _send(websocket: WebSocket, running: RunningCommand) -> None:
    async with contextlib.aclosing(running.events()) as events:
        async for event in events:
            if isinstance(event, CommandOutput):
                await websocket.send_bytes(_STREAMS[event.name] + event.data)
            else:
                await websocket.send_text(dumps(event.as_dict()).decode())


async def _receive(websocket: WebSocket, running: RunningCommand) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        data = message.get("bytes")
        if data is not None:
            await running.write(data[:_LARGEST])
        else:
            await _obey(running, message.get("text") or "")


async def _obey(running: RunningCommand, text: str) -> None:
    try:
        wish: dict[str, Any] = json.loads(text)
        kind = wish["type"]
        if kind == "resize":
            rows, columns = (min(max(int(wish[name]), 1), 1000) for name in ("rows", "columns"))
            running.resize(rows, columns)
        elif kind == "signal":
            running.kill(wish["signal"])
        elif kind == "eof":
            await running.close_stdin()
        else:
            raise ValueError
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise InvalidInputError("the message is not one of `resize`, `signal` and `eof`.") from None
