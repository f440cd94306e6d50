"""What the dashboard asks for its caller: who that is, cells as a page can show them, and usage over the last hour."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from orchestrator.errors import InvalidInputError
from orchestrator.protocol import PROTOCOL, SERVED
from orchestrator.server.answers import Json, dumps
from orchestrator.server.directory import Served
from orchestrator.server.native.abridged import MOST_OUTPUTS, Abridgement, whole_output
from orchestrator.server.native.access import Caller, SessionId, TheService
from orchestrator.server.native.described import ANY_OBJECT, CALLER, NUMBER, PlainText, answers, fields, many
from orchestrator.server.service import Service
from orchestrator.server.usagehistory import INTERVAL
from orchestrator.store.history import CellRecord, History

router = APIRouter(prefix="/v1", tags=["views"])
MOST_CELLS = 20  # of one answer
Number = Annotated[int, Query(ge=1, le=2**31)]
CellNumber = Annotated[int, Path(ge=1, le=2**31)]
Index = Annotated[int, Path(ge=0, le=1_000_000)]
Form = Annotated[str | None, Query(max_length=200, description="A mime type of the output; default: plain text.")]


@router.get("/caller", summary="Who calls", responses=answers(CALLER))
async def caller_itself(caller: Caller, service: TheService) -> Response:
    """Return the token's name, group and rights, whether the server needs tokens, and what the server is.

    A request with `process_id` in the header `Cellblock-Process` is refused by every other process.
    """
    return Json(
        {
            "name": caller.name,
            "group": caller.group,
            "is_operator": caller.is_operator,
            "policies": list(caller.policies),
            "needs_token": not service.authentication.is_open,
            "process_id": service.process_id,
            "protocol": PROTOCOL,
            "protocol_oldest": SERVED[0],
            "version": service.version,
        }
    )


@router.get(
    "/usage",
    summary="Usage over the last hour",
    responses=answers(fields(now=NUMBER, interval_s=NUMBER, kernels=many(ANY_OBJECT))),
)
async def usage(
    caller: Caller, service: TheService, after: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0
) -> Response:
    """Return memory and CPU of the group's kernels, and for an operator of all kernels, every 5 s after a moment."""
    series = service.usage.as_list(None if caller.is_operator else caller.group, after)
    body = {"now": time.time(), "interval_s": INTERVAL, "kernels": series}
    return Json(await asyncio.to_thread(dumps, body))


@router.get(
    "/sessions/{session_id}/view",
    summary="Read cells as a page shows them",
    responses=answers(fields(cells=many(ANY_OBJECT))),
)
async def view(session_id: SessionId, caller: Caller, service: TheService, first: Number, last: Number) -> Response:
    """Return 20 cells at most, each output in its best form and cut to what a page can show. Nothing is woken.

    A cell that runs has the outputs that it has put out by now.
    """
    await service.directory.record(caller, session_id)
    return await cells_answer(service, session_id, first, last)


@router.get(
    "/sessions/{session_id}/history/{number}/outputs/{index}", summary="Save an output", response_class=PlainText
)
async def output(
    session_id: SessionId, number: CellNumber, index: Index, caller: Caller, service: TheService, mime: Form = None
) -> Response:
    """Return one output whole, always as plain text to save: no browser shows or runs it."""
    await service.directory.record(caller, session_id)
    return await output_answer(service, session_id, number, index, mime)


async def cells_answer(service: Service, session_id: str, first: int, last: int) -> Response:
    """Return the answer of some cells of a session. The caller has checked who may read it.

    Raises:
        InvalidInputError: they are more than 20.
    """
    if not 0 <= last - first < MOST_CELLS:
        raise InvalidInputError(f"one answer has at most {MOST_CELLS} cells.")
    records = await _records(service, session_id, first, last)
    return Json(await asyncio.to_thread(_dumped, records))


async def output_answer(service: Service, session_id: str, number: int, index: int, mime: str | None) -> Response:
    """Return the answer of one output. The caller has checked who may read it.

    Raises:
        InvalidInputError: there is no such output.
    """
    records = await _records(service, session_id, number, number)
    if not records:
        raise InvalidInputError(f"the session has no cell {number}.")
    text = whole_output(records[0], index, mime)
    headers = {
        "Content-Disposition": f'attachment; filename="cell-{number}-output-{index + 1}.txt"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    body = await asyncio.to_thread(text.encode, "utf-8", "replace")
    return PlainText(body, headers=headers)


async def _records(service: Service, session_id: str, first: int, last: int) -> list[CellRecord]:
    records = await service.directory.history.run_beside(History.cells, session_id, first=first, last=last)
    held = service.directory.held(session_id)
    return records if held is None else [_with_outputs_so_far(record, held) for record in records]


def _with_outputs_so_far(record: CellRecord, held: Served) -> CellRecord:
    """Return a cell with what it has put out by now, if it runs: the store has only the outputs of cells that ended."""
    if record.outcome != "running":
        return record
    first, count = held.session.outputs_of_running(record.number, MOST_OUTPUTS)
    outputs = [*(output.as_dict() for output in first), *({} for _ in range(count - len(first)))]
    return replace(record, result={**record.result, "outputs": outputs})


def _dumped(records: list[CellRecord]) -> bytes:
    body: dict[str, Any] = {"cells": Abridgement().cells(records)}
    return dumps(body)
