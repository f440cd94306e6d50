"""A command that an operator runs in a live session, over a connection of the control socket.

The connection carries lines of JSON. The first one is the request. The manager answers {"started": PID}, then
{"name": STREAM, "data": BASE64} for each piece of output, and last {"result": …}; or {"error": MESSAGE}. The operator
may send {"data": BASE64}, {"end": true}, {"size": [ROWS, COLUMNS]} and {"signal": NUMBER}. If the operator's connection
ends, the command is killed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from typing import Any

from orchestrator.errors import CellblockError
from orchestrator.limits import KernelResourceLimits
from orchestrator.outcome import Outcome
from orchestrator.output.commandresult import CommandFinished, CommandOutput, shortened
from orchestrator.sessions.commandhandle import RunningCommand
from orchestrator.sessions.session import KernelSession
from orchestrator.sessions.sessioncommands import CommandRequest

OPERATORS_TIME = 12 * 3600.0  # seconds of an operator's command without a time limit of its own
_MOST_CELLS = 1000  # rows, and columns, of a terminal

Held = Callable[[KernelSession], AbstractContextManager[None]]


class CommandLine:
    """Runs one operator's commands. One object serves all connections of a manager.

    Args:
        held: keeps a session awake.
    """

    def __init__(self, limits: KernelResourceLimits, held: Held) -> None:
        self._limits = limits
        self._held = held

    async def serve(
        self,
        session: KernelSession,
        request: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Run the command that a request asks for, until it ends or the connection does.

        Raises:
            ValueError: the request is malformed.
            CellblockError: the command cannot be started.
        """
        kernel = session.live_kernel()
        wanted = parse(request)
        session.note_operator("exec", request.get("operator"))
        with self._held(session):
            running = await session.commands.start(kernel, wanted, self._limits)
            try:
                await _send(writer, {"started": running.pid})
                listening = asyncio.create_task(_listen(reader, running))
                showing = asyncio.create_task(_show(writer, running))
                try:
                    await asyncio.wait({listening, showing}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in (listening, showing):
                        task.cancel()
                    await asyncio.gather(listening, showing, return_exceptions=True)
            finally:
                session.commands.stop(running.number, Outcome.CANCELLED)


def parse(request: dict[str, Any]) -> CommandRequest:
    """Return what a request asks for.

    Raises:
        ValueError: it is malformed.
    """
    command, terminal, env = request.get("command"), request.get("terminal"), request.get("env") or {}
    timeout = request.get("timeout")
    is_argv = isinstance(command, list) and all(isinstance(each, str) for each in command)
    if not (isinstance(command, str) or is_argv):
        raise ValueError("a command is a string, or a list of strings")
    if not isinstance(env, dict) or not all(isinstance(each, str) for pair in env.items() for each in pair):
        raise ValueError("env is an object of strings")
    if timeout is not None and not isinstance(timeout, int | float):
        raise ValueError("timeout is a number of seconds")
    return CommandRequest(
        command=command if isinstance(command, str) else list(command or ()),
        cwd=str(request.get("cwd") or ""),
        env=env,
        keeps_stdin=True,
        timeout=OPERATORS_TIME if timeout is None else float(timeout),
        terminal=None if terminal is None else _size(terminal),
        attached=True,
        by_operator=True,
    )


async def _show(writer: asyncio.StreamWriter, running: RunningCommand) -> None:
    async with contextlib.aclosing(running.events()) as events:
        async for event in events:
            if isinstance(event, CommandOutput):
                data = base64.b64encode(event.data).decode()
                await _send(writer, {"name": event.name, "data": data})
            elif isinstance(event, CommandFinished):
                await _send(writer, {"result": shortened(event.result, 0).as_dict()})


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()  # a slow operator makes the command wait; the command's own deadline ends that


async def _listen(reader: asyncio.StreamReader, running: RunningCommand) -> None:
    """Take what the operator sends. Returns when the connection ends."""
    async for message in _messages(reader):
        if "data" in message:
            with contextlib.suppress(CellblockError):
                await running.write(base64.b64decode(str(message["data"]), validate=True))
        elif "end" in message:
            await running.close_stdin()
        elif "size" in message:
            running.resize(*_size(message["size"]))
        elif "signal" in message:
            running.kill(int(message["signal"]))


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    while line := await reader.readline():
        message = json.loads(line)
        if isinstance(message, dict):
            yield message


def _size(value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("the size of a terminal is [rows, columns]")
    rows, columns = (min(max(1, int(each)), _MOST_CELLS) for each in value)
    return rows, columns
