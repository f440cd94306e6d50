"""What an operator and a load balancer look at: health, readiness, metrics, and the kernels and sessions of all groups.

What an operator does to a session of another group, and that it reads one, is in the audit log with the token's name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.errors import ServerUnavailableError, StoreError
from orchestrator.manager import AgentKernelManager
from orchestrator.server.answers import Json, Problem, dumps
from orchestrator.server.metrics import cluster_exposition, exposition
from orchestrator.server.native.access import Operator, SessionId, TheService
from orchestrator.server.native.bodies import Drain
from orchestrator.server.native.described import (
    ANY_OBJECT,
    FLAG,
    NOTEBOOK,
    SESSION_ROW,
    TEXT,
    NotebookText,
    PlainText,
    answers,
    extended,
    fields,
    many,
    maybe,
)
from orchestrator.server.native.sessionroutes import notebook_answer, session_row
from orchestrator.server.native.viewroutes import CellNumber, Form, Index, Number, cells_answer, output_answer
from orchestrator.server.peers import node_row
from orchestrator.server.service import Service
from orchestrator.sessions.session import KernelSession
from orchestrator.store.auditchain import Mark
from orchestrator.store.auditreading import newest, verify
from orchestrator.store.history import HandleRecord, History, SessionRecord
from orchestrator.store.noderecord import NodeRecord

router = APIRouter(tags=["operation"])
_HEAD = r"^([0-9]{1,18}:[0-9a-f]{64})?$"
_AUDIT_BYTES = 1024 * 1024  # of the log's end
_ROW = extended(SESSION_ROW, group=TEXT, node=maybe(TEXT))
_SECRET = ("code", "command", "prev", "hash")  # what cells and commands say, and what only the chain needs


@router.get("/health", summary="Whether the process answers", responses=answers(fields(status=TEXT)))
async def health() -> Response:
    """Return at once, also while the server shuts down."""
    return Json({"status": "ok"})


@router.get("/ready", summary="Whether the server takes new work", responses=answers(fields(status=TEXT)))
async def ready(service: TheService) -> Response:
    """Return 503 while the server shuts down."""
    if await service.is_ready():
        return Json({"status": "ready"})
    return Problem(ServerUnavailableError("the server shuts down, and takes no new work."))


@router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainText)
async def metrics(_operator: Operator, service: TheService) -> Response:
    """Return the metrics of all managers, with the label `policy`, and of the server."""
    return PlainText(exposition(service), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/metrics/cluster", summary="Metrics of the cluster for Prometheus", response_class=PlainText)
async def cluster_metrics(_operator: Operator, service: TheService) -> Response:
    """Return the nodes' states, places, sessions and leases. Every node returns the same: scrape it at one of them."""
    nodes = await service.peers.nodes()
    live = await service.directory.history.run(History.live_sessions)
    page = cluster_exposition(nodes, live, service.settings.node_lease_s)
    return PlainText(page, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/overview", summary="The kernels of all groups", responses=answers(fields(managers=many(ANY_OBJECT))))
async def overview(_operator: Operator, service: TheService) -> Response:
    """Return what `cellblock ps` shows: pools, queues, and each kernel with its agent, cell and usage."""
    return Json({"managers": service.overview()})


@router.get(
    "/v1/operator/nodes",
    summary="The kernels of all nodes",
    responses=answers(fields(nodes=many(fields(address=TEXT, state=TEXT, is_this=FLAG, fault=TEXT)))),
)
async def nodes(_operator: Operator, service: TheService, request: Request) -> Response:
    """Return each node of the server's cluster with its kernels, as `/v1/overview` has them under `managers`.

    A server of no cluster is the only node, without a name. `managers` is null for a node that has not answered within
    2 s; `fault` says why.
    """
    found = await service.peers.nodes()
    said = await service.peers.overviews(request, [node for node in found if not service.peers.is_this(node)])
    here = {"is_this": True, "fault": "", "managers": service.overview()}
    if not found:
        return Json({"nodes": [{"address": "", "state": "draining" if service.managers.draining else "up", **here}]})
    rows = []
    for node in found:
        managers, fault = said.get(node.node_id, (None, ""))
        there = {"is_this": False, "fault": fault, "managers": managers}
        rows.append({**node_row(node), **(there if node.node_id in said else here)})
    return Json(await asyncio.to_thread(dumps, {"nodes": rows}))


@router.get(
    "/v1/operator/sessions",
    summary="List the sessions of all groups",
    responses=answers(fields(sessions=many(_ROW))),
)
async def list_sessions(
    _operator: Operator, service: TheService, ended: bool = False, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000
) -> Response:
    """Return the sessions of all groups, the last used first; with `ended` also those that have ended."""
    found = await service.directory.history.run(History.handles, None, ended=ended, limit=limit)
    known = await service.peers.nodes()
    rows = [_row(service, known, *each) for each in found]
    return Json(await asyncio.to_thread(dumps, {"sessions": rows}))


@router.get(
    "/v1/operator/sessions/{session_id}",
    summary="Look at a session of any group",
    responses=answers(_ROW),
)
async def show(_operator: Operator, session_id: SessionId, service: TheService) -> Response:
    """Return what is known of a session, also of one that has ended. It is not woken."""
    found = await service.directory.record_of_any_group(session_id)
    return Json(_row(service, await service.peers.nodes(), *found))


@router.get(
    "/v1/operator/sessions/{session_id}/view",
    summary="Read cells of any group as a page shows them",
    responses=answers(fields(cells=many(ANY_OBJECT))),
)
async def view(
    operator: Operator, session_id: SessionId, service: TheService, request: Request, first: Number, last: Number
) -> Response:
    """Return 20 cells at most. The audit log has that the operator reads them."""
    handle, record = await service.directory.record_of_any_group(session_id)
    if (found := await service.peers.read_there(request, record)) is not None:
        return Json(found)
    service.trail.note_reading(operator, handle, record)
    return await cells_answer(service, session_id, first, last)


@router.get(
    "/v1/operator/sessions/{session_id}/history/{number}/outputs/{index}",
    summary="Save an output of any group",
    response_class=PlainText,
)
async def output(
    operator: Operator, session_id: SessionId, number: CellNumber, index: Index, service: TheService, mime: Form = None
) -> Response:
    """Return one output whole, always as plain text to save. The audit log has that the operator reads it."""
    service.trail.note_reading(operator, *await service.directory.record_of_any_group(session_id))
    return await output_answer(service, session_id, number, index, mime)


@router.get(
    "/v1/operator/sessions/{session_id}/notebook",
    summary="Export a session of any group as a notebook",
    response_class=NotebookText,
    responses=NOTEBOOK,
)
async def notebook(operator: Operator, session_id: SessionId, service: TheService, title: str = "") -> Response:
    """Return the session's cells and outputs as a Jupyter notebook. The audit log has that the operator reads it."""
    handle, record = await service.directory.record_of_any_group(session_id)
    service.trail.note_reading(operator, handle, record)
    return await notebook_answer(service, session_id, title or f"Session of {handle.name}")


@router.post(
    "/v1/operator/drain", summary="Give all sessions to other hosts", responses=answers(fields(kept=ANY_OBJECT))
)
async def drain(operator: Operator, service: TheService, wish: Drain) -> Response:
    """Take no more sessions, and put those that are here to sleep as their calls end.

    `kept` says why each session that is still here after the deadline has stayed. The audit log has who asked.
    """
    service.trail.note_here("drain", operator, deadline_s=wish.deadline_s)
    return Json({"kept": await service.drain(wish.deadline_s)})


@router.post(
    "/v1/operator/undrain", summary="Take sessions again after a drain", responses=answers(fields(draining=FLAG))
)
async def undrain(operator: Operator, service: TheService) -> Response:
    """Take sessions again; a drain that still runs ends. The audit log has who asked."""
    service.trail.note_here("undrain", operator)
    await service.undrain()
    return Json({"draining": False})


@router.post(
    "/v1/operator/sessions/{session_id}/interrupt",
    summary="Interrupt the running cell of any group",
    responses=answers(fields(interrupted=FLAG)),
)
async def interrupt(operator: Operator, session_id: SessionId, service: TheService, request: Request) -> Response:
    """Interrupt the session's running cell; `interrupted` is false if none runs."""
    handle, record = await service.directory.record_of_any_group(session_id)
    if (done := await service.peers.sent_on(request, record)) is not None:
        return Json(done)
    service.trail.note("interrupt", operator, handle, record)
    live = _live(service, record)
    return Json({"interrupted": live is not None and live[0].interrupt(live[1])})


@router.post(
    "/v1/operator/sessions/{session_id}/hibernate",
    summary="Put a session of any group to sleep",
    responses=answers(fields(asleep=FLAG)),
)
async def hibernate(operator: Operator, session_id: SessionId, service: TheService, request: Request) -> Response:
    """Checkpoint a session and give its kernel up; `asleep` is false if it is in use, or has ended."""
    handle, record = await service.directory.record_of_any_group(session_id)
    if (done := await service.peers.sent_on(request, record)) is not None:
        return Json(done)
    service.trail.note("hibernate", operator, handle, record)
    live = _live(service, record)
    if live is None:
        return Json({"asleep": record.state == "asleep"})
    return Json({"asleep": await live[0].hibernate(record.agent_id)})


@router.delete(
    "/v1/operator/sessions/{session_id}", summary="Kill a session of any group", responses=answers(fields(ended=FLAG))
)
async def kill(operator: Operator, session_id: SessionId, service: TheService, request: Request) -> Response:
    """End a session and discard its kernel, whatever runs in it. Its history stays."""
    handle, record = await service.directory.record_of_any_group(session_id)
    if (done := await service.peers.sent_on(request, record)) is not None:
        return Json(done)
    service.trail.note("kill", operator, handle, record)
    return Json({"ended": await service.directory.stop(handle, record, "killed")})


@router.get(
    "/v1/operator/audit",
    summary="Read the end of the audit log",
    responses=answers(fields(on=FLAG, entries=many(ANY_OBJECT))),
)
async def audit(_operator: Operator, service: TheService, limit: Annotated[int, Query(ge=1, le=500)] = 100) -> Response:
    """Return the newest entries of the log's current file, without code and commands; `on` says if there is a log."""
    path = service.settings.audit_path
    entries = [] if path is None else await asyncio.to_thread(_newest, path, limit)
    return Json({"on": path is not None, "entries": entries})


@router.get(
    "/v1/operator/audit/verify",
    summary="Verify the audit log of this server",
    responses=answers(fields(verdict=maybe(ANY_OBJECT), fault=TEXT)),
)
async def verify_audit(
    _operator: Operator, service: TheService, head: Annotated[str, Query(pattern=_HEAD)] = ""
) -> Response:
    """Read the whole log, and return what `cellblock audit verify --json` prints.

    `verdict` is null if the log could not be read; `fault` says why.
    """
    path = service.settings.audit_path
    if path is None:
        return Json({"verdict": None, "fault": "this server keeps no audit log"})
    try:
        async with service.verifying:  # one at a time: it reads gigabytes
            verdict = await asyncio.to_thread(verify, path, Mark.of(head) if head else None)
    except OSError as error:
        return Json({"verdict": None, "fault": f"the audit log cannot be read: {error.strerror or error}"})
    return Json({"verdict": verdict.as_dict(), "fault": ""})


def _newest(path: Path, limit: int) -> list[dict[str, Any]]:
    try:
        entries = newest(path, limit, _AUDIT_BYTES)
    except OSError as error:
        raise StoreError(f"the audit log cannot be read: {error.strerror or error}.") from error
    return [{key: item for key, item in entry.items() if key not in _SECRET} for entry in entries]


def _row(service: Service, nodes: Sequence[NodeRecord], handle: HandleRecord, record: SessionRecord) -> dict[str, Any]:
    node = service.peers.place_of(record, nodes)
    place = None if node is None else node.address
    return {"group": handle.group, "node": place, **session_row(handle, record)}


def _live(service: Service, record: SessionRecord) -> tuple[AgentKernelManager, KernelSession] | None:
    """Return a session that has a kernel, with its manager."""
    for manager in service.managers:
        session = manager.sessions.get(record.agent_id)
        if session is not None and session.session_id == record.session_id:
            return manager, session
    return None
