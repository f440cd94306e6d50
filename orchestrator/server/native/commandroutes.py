"""``/v1/sessions/{session_id}/commands``: running programs beside cells."""

from __future__ import annotations

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, WebSocket
from starlette.responses import Response

from orchestrator.errors import InvalidInputError
from orchestrator.server.answers import Json, dumps, dumps_large
from orchestrator.server.directory import Served
from orchestrator.server.eventstream import EventStream, event_stream
from orchestrator.server.native import livecommands
from orchestrator.server.native.access import Caller, TheService, TheSession, wants_events
from orchestrator.server.native.bodies import Input, NewCommand, Signal, Size, one_of
from orchestrator.server.native.cellroutes import asked
from orchestrator.server.native.described import (
    COMMAND,
    COMMAND_RECORD,
    COMMAND_RESULT,
    EVENTS,
    FLAG,
    answers,
    extended,
    fields,
    many,
    maybe,
)
from orchestrator.server.native.once import Key
from orchestrator.server.native.terminal import converse
from orchestrator.server.service import Service
from orchestrator.server.waiting import unless_gone

router = APIRouter(prefix="/v1/sessions/{session_id}/commands", tags=["commands"])
_LONGEST_WAIT = 600.0  # seconds


@router.post("", summary="Run a command", responses={**answers(COMMAND_RESULT, events=True), **answers(COMMAND, 201)})
async def run(
    served: TheSession, body: NewCommand, request: Request, caller: Caller, service: TheService, key: Key = None
) -> Response:
    """Run a command and return its result; any exit code is a result.

    With `Accept: text/event-stream` its output comes as events, and the last one is `command_finished`. The command is
    killed when the client disconnects, unless it runs in the background or an idempotency key came with it.
    """
    stdin = one_of(body.stdin, decoded(body.stdin_base64))
    if body.background:
        return Json(
            await service.idempotency.once(
                caller, key, await asked(request), lambda: _started(service, served, body, stdin)
            ),
            201,
        )
    if body.keep_stdin or body.terminal is not None:
        raise InvalidInputError("only a command in the background can have more input, or a terminal.")
    if wants_events(request):
        events = served.manager.stream_command(served.session, body.command, **_options(served, body, stdin))
        return event_stream(livecommands.numbered(events))
    if key is None:
        return Json(await unless_gone(request, _run(served, body, stdin)))
    return Json(await service.idempotency.once(caller, key, await asked(request), lambda: _run(served, body, stdin)))


@router.get("", summary="List the commands that run", responses=answers(fields(commands=many(COMMAND))))
async def list_commands(served: TheSession) -> Response:
    """Return the running commands, in the order of their numbers."""
    return Json({"commands": [each.as_dict() for each in served.manager.list_commands(served.session)]})


@router.get("/history", summary="List all commands", responses=answers(fields(commands=many(COMMAND_RECORD))))
async def history(served: TheSession) -> Response:
    """Return all commands of the session with their results, of which at most 64 KiB of each stream are kept."""
    records = await served.session.command_history()
    fields = ("number", "kernel_id", "command", "shell", "started_at", "ended_at", "outcome", "result")
    return Json({"commands": [{name: getattr(record, name) for name in fields} for record in records]})


@router.get(
    "/{number}", summary="Wait for a command", responses=answers(extended(COMMAND, result=maybe(COMMAND_RESULT)))
)
async def wait(
    served: TheSession, number: int, wait_s: Annotated[float, Query(ge=0, le=_LONGEST_WAIT)] = 0.0
) -> Response:
    """Return a background command: its `result` once it is over, or null after `wait_s` seconds."""
    running = livecommands.find(served, number)
    result = await livecommands.wait(running, wait_s)
    form, size = (None, 0) if result is None else (result.as_dict(), livecommands.size_of(result))
    return Json(await dumps_large({**running.as_dict(), "result": form}, size))


@router.get("/{number}/events", summary="Follow a command", response_class=EventStream, responses=EVENTS)
async def follow(served: TheSession, number: int) -> Response:
    """Stream a background command's output. One client at a time may: the command waits for a slow one."""
    return event_stream(livecommands.numbered(livecommands.find(served, number).events()))


@router.post("/{number}/input", summary="Write to a command", responses=answers(fields(taken=FLAG)))
async def write(served: TheSession, number: int, body: Input) -> Response:
    """Write to the stdin of a background command, once it has room for that; `taken` is false if it takes no more."""
    running = livecommands.find(served, number)
    data = one_of(body.data, decoded(body.data_base64))
    taken = await running.write(data) if data else True
    if body.last:
        await running.close_stdin()
    return Json({"taken": taken})


@router.post("/{number}/signal", summary="Send a signal to a command", responses=answers(fields(was_running=FLAG)))
async def signal(served: TheSession, number: int, body: Signal) -> Response:
    """Send a signal to a background command and the processes of its group; SIGKILL to all that it has started."""
    return Json({"was_running": livecommands.find(served, number).kill(body.signal)})


@router.post("/{number}/size", summary="Set the size of a command's terminal", responses=answers(fields(resized=FLAG)))
async def resize(served: TheSession, number: int, body: Size) -> Response:
    """Set rows and columns."""
    livecommands.find(served, number).resize(body.rows, body.columns)
    return Json({"resized": True})


@router.websocket("/{number}/attach")
async def attach(websocket: WebSocket, served: TheSession, number: int) -> None:
    """Talk with a command: see docs/server.md for the messages."""
    await converse(websocket, livecommands.find(served, number))


async def _started(service: Service, served: Served, body: NewCommand, stdin: bytes) -> bytes:
    running = await served.manager.start_command(
        served.session,
        body.command,
        keep_stdin=body.keep_stdin,
        terminal=body.terminal,
        **_options(served, body, stdin),
    )
    livecommands.remember(served, running, service.ended_commands)
    return dumps(running.as_dict())


async def _run(served: Served, body: NewCommand, stdin: bytes) -> bytes:
    result = await served.manager.run_command(served.session, body.command, **_options(served, body, stdin))
    return await dumps_large(result.as_dict(), livecommands.size_of(result))


def _options(served: Served, body: NewCommand, stdin: bytes) -> dict[str, Any]:
    return {"cwd": body.cwd, "env": served.environment(body.env), "stdin": stdin, "timeout": body.timeout}


def decoded(text: str) -> bytes | None:
    """Return the bytes that base64 stands for; None for none.

    Raises:
        InvalidInputError: it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True) if text else None
    except ValueError:
        raise InvalidInputError("the input is no base64.") from None
