"""``process.Process`` of E2B's envd, as Connect calls: commands, their input, and terminals."""

from __future__ import annotations

import base64
import binascii
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from typing import Any

from orchestrator.errors import InvalidInputError
from orchestrator.server.directory import Served
from orchestrator.server.e2b.codecontexts import HOME
from orchestrator.server.e2b.connectwire import Envelopes, envelope
from orchestrator.server.e2b.fileentries import inside
from orchestrator.server.e2b.liveprocesses import LiveProcess, LiveProcesses, Told
from orchestrator.server.e2b.sandboxes import member, texts

_SIGNALS = {"SIGNAL_SIGTERM": 15, "SIGNAL_SIGKILL": 9}
Body = dict[str, Any]
Call = Callable[[Served, Body], Awaitable[Body]]


async def start(served: Served, body: Body, timeout: float | None) -> AsyncGenerator[bytes, None]:
    """Start a command, and yield what it does. It runs on if the consumer stops.

    Args:
        timeout: seconds after which it is killed; None: the policy's.

    Raises:
        See ``AgentKernelManager.start_command`` and ``LiveProcess.follow``.
    """
    config, terminal = member(body, "process", dict, {}), _size(body)
    arguments = member(config, "args", list, [])
    if not all(isinstance(argument, str) for argument in arguments):
        raise InvalidInputError("'args' are texts.")
    command = [member(config, "cmd", str, ""), *arguments]
    folder = inside(member(config, "cwd", str, ""))
    running = await served.manager.start_command(
        served.session,
        command,
        cwd=folder,
        env={"HOME": HOME, "PWD": folder, **served.environment(texts(config, "envs"))},
        keep_stdin=member(body, "stdin", bool, True) or terminal is not None,
        terminal=terminal,
        timeout=timeout,
    )
    process = LiveProcess(
        served.session_id, running, config, member(body, "tag", str, ""), is_terminal=terminal is not None
    )
    LiveProcesses.of(served).add(process)
    queue = process.subscribe()
    process.read()
    async with contextlib.aclosing(process.follow(queue)) as events:
        async for event in events:
            yield envelope({"event": event})


async def connect(served: Served, body: Body) -> AsyncGenerator[bytes, None]:
    """Yield what a command does from now on.

    Raises:
        See ``LiveProcesses.find`` and ``LiveProcess.follow``.
    """
    process = _found(served, body)
    async with contextlib.aclosing(process.follow(process.subscribe())) as events:
        async for event in events:
            yield envelope({"event": event})


async def stream_input(served: Served, pieces: AsyncIterable[bytes]) -> Body:
    """Write to a command what comes.

    Raises:
        InvalidInputError: the stream is malformed, or does not begin with the command.
        See ``LiveProcesses.find`` and ``RunningCommand.write``.
    """
    envelopes, process = Envelopes(), None
    async for piece in pieces:
        for message in envelopes.feed(piece):
            if "start" in message:
                process = _found(served, member(message, "start", dict, {}))
            elif process is None:
                raise InvalidInputError("the stream does not begin with the process.")
            elif "data" in message:
                await _write(process, member(message, "data", dict, {}))
    return {}


async def list_processes(served: Served, _body: Body) -> Body:
    """Return the commands that run."""
    return {"processes": [process.as_dict() for process in LiveProcesses.of(served).listed()]}


async def send_input(served: Served, body: Body) -> Body:
    """Write to a command."""
    await _write(_found(served, body), body)
    return {}


async def send_signal(served: Served, body: Body) -> Body:
    """Send a signal to a command."""
    signal = body.get("signal", 0)
    number = _SIGNALS.get(signal, 0) if isinstance(signal, str) else signal
    if number not in _SIGNALS.values():
        raise InvalidInputError("the signal is neither SIGTERM nor SIGKILL.")
    _found(served, body).running.kill(number)
    return {}


async def close_stdin(served: Served, body: Body) -> Body:
    """End a command's input."""
    await _found(served, body).running.close_stdin()
    return {}


async def update(served: Served, body: Body) -> Body:
    """Set the size of a command's terminal."""
    process, size = _found(served, body), _size(body)
    if size is not None:
        process.running.resize(*size)
    return {}


CALLS: dict[str, Call] = {
    "List": list_processes,
    "SendInput": send_input,
    "SendSignal": send_signal,
    "CloseStdin": close_stdin,
    "Update": update,
}


def _found(served: Served, body: Body) -> LiveProcess:
    selector = member(body, "process", dict, {})
    return LiveProcesses.of(served).find(member(selector, "pid", int, 0), member(selector, "tag", str, ""))


def _size(body: Body) -> tuple[int, int] | None:
    """Return rows and columns of a terminal; None for none."""
    if body.get("pty") is None:
        return None
    size = member(member(body, "pty", dict, {}), "size", dict, {})
    rows, columns = (min(max(member(size, name, int, 0), 1), 1000) for name in ("rows", "cols"))
    return rows, columns


async def _write(process: LiveProcess, message: Body) -> None:
    told: Told = member(message, "input", dict, {})
    coded = member(told, "pty", str, "") or member(told, "stdin", str, "")
    try:
        data = base64.b64decode(coded)
    except (binascii.Error, ValueError):
        raise InvalidInputError("the input is no base64.") from None
    if data:
        await process.running.write(data)
