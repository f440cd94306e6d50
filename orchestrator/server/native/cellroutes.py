"""``/v1/sessions/{session_id}/execute`` and ``/cells``: running code."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from orchestrator.errors import InvalidInputError
from orchestrator.output.events import ExecutionResult
from orchestrator.server.answers import Json, dumps_large
from orchestrator.server.directory import Served
from orchestrator.server.eventstream import EventStream, event_stream, last_event_id
from orchestrator.server.native import livecells
from orchestrator.server.native.access import (
    Caller,
    TheService,
    TheSession,
    caller_of,
    service_of,
    wants_events,
)
from orchestrator.server.native.bodies import Answer, NewCell
from orchestrator.server.native.described import CELL, EVENTS, FLAG, RESULT, answers, extended, fields, many, maybe
from orchestrator.server.native.once import Key
from orchestrator.server.waiting import unless_gone

router = APIRouter(prefix="/v1/sessions/{session_id}", tags=["cells"])
requests = APIRouter(prefix="/v1/requests", tags=["cells"])
Compact = Annotated[bool, Query(description="Leave out `stdout`, `stderr` and `result`, which repeat `outputs`.")]
_LONGEST_WAIT = 600.0  # seconds
_REPEATED = ("stdout", "stderr", "result")


@router.post("/execute", summary="Run a cell", responses=answers(RESULT, events=True))
async def execute(
    served: TheSession,
    body: NewCell,
    request: Request,
    key: Key = None,
    compact: Compact = False,
) -> Response:
    """Run one cell and return its result, however the cell ended: an error of the code is a result.

    With `Accept: text/event-stream` the outputs come as events, and the last one is `cell_finished`. A client that lost
    its connection goes on at `/cells/{cell_id}/events` within 30 s; after that the cell is interrupted. Without events
    the cell is interrupted when the client disconnects, unless it sent an idempotency key.
    """
    if wants_events(request):
        cell_id = await _once(request, key, partial(_begin, served, body, livecells.ABANDONED), b"events")
        live = livecells.find(served, cell_id.decode())
        return event_stream(live.follow(last_event_id(request.headers.get("last-event-id"))))
    if body.tools or body.input:
        raise InvalidInputError("a cell that asks its client needs events.", remedy="Send `Accept: text/event-stream`.")
    if key is None:
        return Json(await unless_gone(request, _run(served, body, compact)))
    return Json(await _once(request, key, lambda: _run(served, body, compact)))


@router.post("/cells", status_code=201, summary="Start a cell", responses=answers(CELL, 201))
async def start(served: TheSession, body: NewCell, request: Request, key: Key = None) -> Response:
    """Start a cell that outlives this request. It ends at its time limit, or when it is interrupted."""
    cell_id = await _once(request, key, partial(_begin, served, body, None))
    return Json(livecells.find(served, cell_id.decode()).as_dict(), 201)


@router.get(
    "/cells", summary="List the cells that run, or ended not long ago", responses=answers(fields(cells=many(CELL)))
)
async def list_cells(served: TheSession) -> Response:
    """Return the cells that were started here. The history has all."""
    return Json({"cells": [live.as_dict() for live in livecells.listed(served)]})


@router.get("/cells/{cell_id}", summary="Wait for a cell", responses=answers(extended(CELL, result=maybe(RESULT))))
async def wait(
    served: TheSession,
    cell_id: str,
    wait_s: Annotated[float, Query(ge=0, le=_LONGEST_WAIT)] = 0.0,
    compact: Compact = False,
) -> Response:
    """Return a cell: its `result` once it is over, or null after `wait_s` seconds."""
    live = livecells.find(served, cell_id)
    result: ExecutionResult | None = None
    with contextlib.suppress(TimeoutError):
        result = await live.cell.wait(wait_s if live.cell.is_running else None)
    form = None if result is None else _form(result, compact)
    size = 0 if result is None else result.evidence.output_bytes
    return Json(await dumps_large({**live.as_dict(), "result": form}, size))


@router.get("/cells/{cell_id}/events", summary="Follow a cell", response_class=EventStream, responses=EVENTS)
async def follow(
    served: TheSession,
    cell_id: str,
    last_event: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> Response:
    """Stream a cell's events from its start, or after the last one that the client has seen."""
    return event_stream(livecells.find(served, cell_id).follow(last_event_id(last_event)))


@router.post("/cells/{cell_id}/interrupt", summary="Interrupt a cell", responses=answers(fields(interrupted=FLAG)))
async def interrupt_cell(served: TheSession, cell_id: str) -> Response:
    """Interrupt a cell as Ctrl-C does. One that waits for its turn never runs."""
    return Json({"interrupted": livecells.find(served, cell_id).cell.interrupt()})


@router.post(
    "/cells/{cell_id}/answers/{question_id}", summary="Answer a cell", responses=answers(fields(answered=FLAG))
)
async def answer(served: TheSession, cell_id: str, question_id: str, body: Answer) -> Response:
    """Answer an event `tool_call` or `input_request` of the cell."""
    questions = livecells.find(served, cell_id).questions
    if body.error is not None:
        questions.fail(question_id, body.error.kind, body.error.message)
    else:
        questions.answer(question_id, body.result)
    return Json({"answered": True})


@router.post("/interrupt", summary="Interrupt the running cell", responses=answers(fields(interrupted=FLAG)))
async def interrupt(served: TheSession) -> Response:
    """Interrupt the session's running cell, whoever started it."""
    return Json({"interrupted": served.manager.interrupt(served.session)})


@requests.delete("/{key}", summary="Cancel a request", responses=answers(fields(cancelled=FLAG)))
async def cancel(key: Annotated[str, Path(max_length=255)], caller: Caller, service: TheService) -> Response:
    """Cancel a request that was sent with this idempotency key and is not answered yet: its cell is interrupted."""
    return Json({"cancelled": service.idempotency.cancel(caller, key)})


async def asked(request: Request, how: bytes = b"") -> bytes:
    """Return what a request asks for, to tell it from another one with the same idempotency key."""
    return b"\0".join((request.url.path.encode(), how, await request.body()))


async def _once(request: Request, key: str | None, make: Callable[[], Awaitable[bytes]], how: bytes = b"") -> bytes:
    """Return what ``make`` returns, or returned for the caller's first request with this key. See ``Idempotency``."""
    return await service_of(request).idempotency.once(caller_of(request), key, await asked(request, how), make)


async def _begin(served: Served, body: NewCell, patience: float | None) -> bytes:
    """Start a cell, and return its id: a key that kept the cell itself would keep its outputs beyond every bound."""
    return (await livecells.start(served, body, patience=patience)).cell.id.encode()


async def _run(served: Served, body: NewCell, compact: bool) -> bytes:
    result = await served.manager.execute(
        served.session,
        body.code,
        timeout=body.timeout,
        output_limit=body.output_limit,
        environment=served.environment(body.environment),
    )
    return await dumps_large(_form(result, compact), result.evidence.output_bytes)


def _form(result: ExecutionResult, compact: bool) -> dict[str, Any]:
    form = result.as_dict()
    return {name: form[name] for name in form if name not in _REPEATED} if compact else form
