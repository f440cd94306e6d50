"""``/v1/sessions``: making, finding and ending sessions, their state, and their past."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

import nbformat
from fastapi import APIRouter, Query
from starlette.responses import Response

from orchestrator.errors import InvalidInputError
from orchestrator.principal import Principal
from orchestrator.server.answers import Json, dumps
from orchestrator.server.directory import Served, Wish
from orchestrator.server.native.access import Caller, SessionId, TheService, TheSession
from orchestrator.server.native.bodies import Fork, Lifetime, NewSession, Requirements, Restart, Restore
from orchestrator.server.native.described import (
    ANY_OBJECT,
    CHECKPOINT,
    FLAG,
    HISTORY_CELL,
    NOTEBOOK,
    NUMBER,
    RESTORED,
    SESSION,
    SESSION_ROW,
    TEXT,
    VARIABLE,
    NotebookText,
    answers,
    fields,
    many,
    maybe,
)
from orchestrator.server.native.once import JustOnce
from orchestrator.server.service import Service
from orchestrator.sessions.checkpoint import Checkpoint
from orchestrator.sessions.notebook import session_notebook
from orchestrator.sessions.restored import Restored
from orchestrator.store.history import CellRecord, HandleRecord, History, SessionRecord

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])
_ID_DIGITS = frozenset("0123456789abcdef")


@router.post(
    "",
    status_code=201,
    summary="Make a session",
    responses={**answers(SESSION), **answers(SESSION, 201)},
)
async def create(body: NewSession, caller: Caller, service: TheService, once: JustOnce) -> Response:
    """Make a session with a kernel of its own, or return the one that the agent has, awake."""
    wish = Wish(
        body.agent_id,
        body.policy,
        body.image,
        body.environment,
        body.labels,
        body.ttl_s,
        body.on_expiry,
        body.timeout,
        body.priority,
        body.caller,
    )
    session, is_new = await once(lambda: _opened(service, caller, wish))
    return Json(session, 201 if is_new else 200)


@router.get("", summary="List the sessions of the token's group", responses=answers(fields(sessions=many(SESSION_ROW))))
async def list_sessions(
    caller: Caller, service: TheService, ended: bool = False, limit: Annotated[int, Query(ge=1, le=10_000)] = 1000
) -> Response:
    """Return the group's sessions, the last used first; with `ended` also those that have ended."""
    found = await service.directory.history.run(History.handles, caller.group, ended=ended, limit=limit)
    rows = {"sessions": [session_row(handle, record) for handle, record in found]}
    return Json(await asyncio.to_thread(dumps, rows))


@router.get("/{session_id}", summary="Look at a session", responses=answers(SESSION_ROW))
async def show(session_id: SessionId, caller: Caller, service: TheService) -> Response:
    """Return what is known of a session, also of one that has ended. It is not woken."""
    return Json(session_row(*await service.directory.record(caller, session_id)))


@router.delete("/{session_id}", summary="End a session", responses=answers(fields(ended=FLAG)))
async def end(session_id: SessionId, caller: Caller, service: TheService, once: JustOnce) -> Response:
    """End a session and discard its kernel. Its history stays."""

    async def ended() -> bool:  # looks for the session itself: when the request comes again, there is none
        return await service.directory.end(await service.directory.find(caller, session_id))

    return Json({"ended": await once(ended)})


@router.post("/{session_id}/lease", summary="Wake a session", responses=answers(SESSION))
async def lease(served: TheSession, body: NewSession, caller: Caller, service: TheService, once: JustOnce) -> Response:
    """Give a session that sleeps its kernel now, and not with its next cell."""
    wish = Wish(served.handle.name, timeout=body.timeout, priority=body.priority)
    session, _ = await once(lambda: _opened(service, caller, wish))
    return Json(session)


@router.put(
    "/{session_id}/lifetime", summary="Set when a session expires", responses=answers(fields(expires_at=maybe(NUMBER)))
)
async def set_lifetime(served: TheSession, body: Lifetime, service: TheService, once: JustOnce) -> Response:
    """Count the time to live from now."""
    await once(lambda: service.directory.set_expiry(served, body.ttl_s, body.on_expiry))
    return Json({"expires_at": served.handle.expires_at})


@router.post("/{session_id}/restart", summary="Give a session a fresh kernel", responses=answers(SESSION))
async def restart(served: TheSession, body: Restart, once: JustOnce) -> Response:
    """Discard the kernel with its variables; the files stay unless `keep_files` is false."""
    await once(lambda: served.manager.restart_kernel(served.session, keep_files=body.keep_files, timeout=body.timeout))
    return Json(_session(served))


@router.post("/{session_id}/hibernate", summary="Put a session to sleep", responses=answers(fields(asleep=FLAG)))
async def hibernate(served: TheSession, once: JustOnce) -> Response:
    """Checkpoint a session and give its kernel up; `asleep` is false if it is in use."""
    return Json({"asleep": await once(lambda: served.manager.hibernate(served.session.agent_id))})


@router.post("/{session_id}/packages", summary="Install packages", responses=answers(fields(installed=many(TEXT))))
async def install(served: TheSession, body: Requirements, once: JustOnce) -> Response:
    """Install packages that the policy allows."""
    return Json({"installed": await once(lambda: served.manager.install(served.session, body.requirements))})


@router.get("/{session_id}/variables", summary="List variables", responses=answers(fields(variables=many(VARIABLE))))
async def variables(served: TheSession) -> Response:
    """Return the session's variables, 1,000 at most."""
    return Json({"variables": [each.as_dict() for each in await served.manager.list_variables(served.session)]})


@router.post(
    "/{session_id}/checkpoints", status_code=201, summary="Save a session's state", responses=answers(CHECKPOINT, 201)
)
async def checkpoint(served: TheSession, once: JustOnce) -> Response:
    """Save variables, files, working directory and random state; `lost` has what could not be saved."""

    async def made() -> dict[str, Any]:
        return _checkpoint(await served.manager.checkpoint(served.session))

    return Json(await once(made), 201)


@router.get(
    "/{session_id}/checkpoints", summary="List checkpoints", responses=answers(fields(checkpoints=many(CHECKPOINT)))
)
async def checkpoints(session_id: SessionId, caller: Caller, service: TheService) -> Response:
    """Return the session's checkpoints, the newest first."""
    await service.directory.record(caller, session_id)
    found = await service.directory.history.run(History.checkpoints_of, session_id)
    return Json({"checkpoints": [asdict(record) for record in found]})


@router.post("/{session_id}/restore", summary="Load a checkpoint", responses=answers(RESTORED))
async def restore(served: TheSession, body: Restore, once: JustOnce) -> Response:
    """Load a checkpoint of the session into a fresh kernel. Its history stays."""
    checkpoint_id = body.checkpoint_id
    if len(checkpoint_id) != 32 or not _ID_DIGITS.issuperset(checkpoint_id):  # never a path of this host
        raise InvalidInputError("a checkpoint's id has 32 hex digits.")

    async def restored() -> dict[str, Any]:
        return _restored(await served.manager.restore(served.session, checkpoint_id, body.timeout))

    return Json(await once(restored))


@router.post(
    "/{session_id}/fork",
    status_code=201,
    summary="Fork a session",
    responses=answers(fields(sessions=many(SESSION)), 201),
)
async def fork(served: TheSession, body: Fork, caller: Caller, service: TheService, once: JustOnce) -> Response:
    """Make independent sessions with the state of this one. They sleep until they are used."""

    async def forked() -> list[dict[str, Any]]:
        return [_session(each) for each in await _fork(served, body, caller, service)]

    return Json({"sessions": await once(forked)}, 201)


@router.get(
    "/{session_id}/history", summary="Read a session's cells", responses=answers(fields(cells=many(HISTORY_CELL)))
)
async def history(
    session_id: SessionId, caller: Caller, service: TheService, after: Annotated[int, Query(ge=0)] = 0
) -> Response:
    """Return the cells after number `after`, with their code and results. The session is not woken."""
    cells = await _cells(service, caller, session_id)
    entries = [_entry(cell) for cell in cells if cell.number > after]
    return Json(await asyncio.to_thread(dumps, {"cells": entries}))


@router.get(
    "/{session_id}/notebook", summary="Export a session as a notebook", response_class=NotebookText, responses=NOTEBOOK
)
async def notebook(session_id: SessionId, caller: Caller, service: TheService, title: str = "") -> Response:
    """Return the session's cells and outputs as a Jupyter notebook."""
    handle, _ = await service.directory.record(caller, session_id)
    return await notebook_answer(service, session_id, title or f"Session of {handle.name}")


@router.get("/{session_id}/usage", summary="Measure a session's kernel", responses=answers(ANY_OBJECT))
async def usage(served: TheSession) -> Response:
    """Return memory, CPU and processes of the kernel; nothing of a session that sleeps."""
    if served.session.asleep or served.session.kernel is None:
        return Json({"asleep": True})
    return Json(await served.manager.get_kernel_resource_usage(served.session.kernel_id))


async def notebook_answer(service: Service, session_id: str, title: str) -> Response:
    """Return a session as a notebook. The caller has checked who may read it."""
    cells = await service.directory.history.run_beside(History.cells, session_id)
    entries = [{"timestamp": cell.started_at, "code": cell.code, "result": cell.result} for cell in cells]
    text = await asyncio.to_thread(lambda: nbformat.writes(session_notebook(entries, title)))
    return NotebookText(text, headers={"X-Content-Type-Options": "nosniff"})


async def _opened(service: Service, caller: Principal, wish: Wish) -> tuple[dict[str, Any], bool]:
    served, is_new = await service.directory.open(caller, wish)
    return _session(served), is_new


async def _fork(served: Served, body: Fork, caller: Principal, service: Service) -> list[Served]:
    names = body.agent_ids or [f"{served.handle.name}~{number}" for number in range(1, body.count + 1)]
    if len(names) != body.count:
        raise InvalidInputError("agent_ids must have count entries.")
    return await service.directory.fork(caller, served, names)


async def _cells(service: Service, caller: Principal, session_id: str) -> list[CellRecord]:
    await service.directory.record(caller, session_id)
    return await service.directory.history.run_beside(History.cells, session_id)


def _entry(cell: CellRecord) -> dict[str, Any]:
    return {
        "number": cell.number,
        "timestamp": cell.started_at,
        "ended_at": cell.ended_at,
        "outcome": cell.outcome,
        "code": cell.code,
        "result": cell.result,
    }


def _session(served: Served) -> dict[str, Any]:
    session, handle = served.session, served.handle
    return {
        "session_id": session.session_id,
        "agent_id": handle.name,
        "kernel_id": session.kernel_id,
        "state": "asleep" if session.asleep else "live",
        "policy": handle.policy,
        "image": handle.image,
        "labels": dict(handle.labels),
        "expires_at": handle.expires_at,
        "on_expiry": handle.on_expiry,
        "created_at": session.created_at,
        "last_used_at": session.last_used_at,
        "cell_count": session.cell_count,
        "previous_end": session.previous_end,
        "parent_id": session.parent_id,
        "runtime": served.manager.runtime,
        "restored": None if session.restored is None else _restored(session.restored),
    }


def session_row(handle: HandleRecord, record: SessionRecord) -> dict[str, Any]:
    """Return what the store has of a session, as JSON."""
    return {
        **record.as_dict(),
        "agent_id": handle.name,
        "policy": handle.policy,
        "image": handle.image,
        "labels": dict(handle.labels),
        "expires_at": handle.expires_at,
        "on_expiry": handle.on_expiry,
    }


def _checkpoint(made: Checkpoint) -> dict[str, Any]:
    fields = ("checkpoint_id", "session_id", "created_at", "cell", "bytes")
    return {**{name: getattr(made, name) for name in fields}, "lost": [asdict(loss) for loss in made.lost]}


def _restored(restored: Restored) -> dict[str, Any]:
    return {
        "checkpoint_id": restored.checkpoint_id,
        "cell": restored.cell,
        "lost": [asdict(loss) for loss in restored.lost],
        "seconds": restored.seconds,
    }
