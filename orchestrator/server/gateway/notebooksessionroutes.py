"""``/api/sessions``: Jupyter's sessions, each a document of a client and its kernel."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from weakref import WeakValueDictionary

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.errors import SessionEndedError, UnknownSessionError
from orchestrator.server.answers import Json
from orchestrator.server.gateway.kernelroutes import caller, kernels_of, parsed
from orchestrator.server.gateway.kernelspecs import DEFAULT
from orchestrator.server.gateway.notebooksessions import NotebookSession, NotebookSessions

_Text = Annotated[str, Field(max_length=4096)]


class KernelWish(BaseModel):
    """An existing kernel, or a new one of a kernelspec."""

    id: _Text | None = None
    name: _Text | None = None


class SessionChange(BaseModel):
    """What to change. Clients send more: it has no effect."""

    path: _Text | None = None
    name: _Text | None = None
    type: _Text | None = None
    kernel: KernelWish | None = None


class NewSession(SessionChange):
    """A document, and which kernel it is to have."""

    path: _Text
    type: _Text


async def _list(request: Request) -> Response:
    principal, notebooks = caller(request), _notebooks(request)
    kernels = {model["id"]: model for model in await kernels_of(request).models(principal)}
    models = []
    for session in notebooks.of(principal.group):
        if session.kernel_id in kernels:
            models.append(session.as_dict(kernels[session.kernel_id]))
        else:
            notebooks.remove(principal.group, session.id)
    return Json(models)


async def _create(request: Request) -> Response:
    body: NewSession = await parsed(NewSession, request)
    principal, notebooks = caller(request), _notebooks(request)
    locks: WeakValueDictionary[Any, asyncio.Lock] = request.app.state.opening
    async with locks.setdefault((principal.group, body.path), asyncio.Lock()):
        found = notebooks.at(principal.group, body.path or "")
        model = None if found is None else await _kernel_model(request, found)
        if found is None or model is None:
            notebooks.check_room(principal.group)
            model = await _kernel(request, body.kernel or KernelWish())
            found = notebooks.add(principal.group, body.path or "", body.name or "", body.type or "", model["id"])
    return Json(found.as_dict(model), 201, {"Location": f"/api/sessions/{found.id}"})


async def _show(request: Request) -> Response:
    session = _notebooks(request).find(caller(request).group, request.path_params["session_id"])
    return Json(session.as_dict(await kernels_of(request).model(caller(request), session.kernel_id)))


async def _change(request: Request) -> Response:
    body: SessionChange = await parsed(SessionChange, request)
    principal, notebooks = caller(request), _notebooks(request)
    before = notebooks.find(principal.group, request.path_params["session_id"])
    wanted = {"path": body.path, "name": body.name, "kind": body.type}
    if body.kernel is not None and (body.kernel.id or body.kernel.name):
        wanted["kernel_id"] = (await _kernel(request, body.kernel))["id"]
    changes = {name: value for name, value in wanted.items() if value is not None}
    after = notebooks.change(principal.group, before.id, **changes)
    if after.kernel_id != before.kernel_id:
        await _stop(request, before)
    return Json(after.as_dict(await kernels_of(request).model(principal, after.kernel_id)))


async def _delete(request: Request) -> Response:
    principal, notebooks = caller(request), _notebooks(request)
    session = notebooks.find(principal.group, request.path_params["session_id"])
    notebooks.remove(principal.group, session.id)
    await _stop(request, session)
    return Response(status_code=204)


routes = [
    Route("/api/sessions", _list, methods=["GET"]),
    Route("/api/sessions", _create, methods=["POST"]),
    Route("/api/sessions/{session_id}", _show, methods=["GET"]),
    Route("/api/sessions/{session_id}", _change, methods=["PATCH"]),
    Route("/api/sessions/{session_id}", _delete, methods=["DELETE"]),
]


def _notebooks(request: Request) -> NotebookSessions:
    notebooks: NotebookSessions = request.app.state.notebooks
    return notebooks


async def _kernel(request: Request, wish: KernelWish) -> dict[str, Any]:
    """Return the model of the kernel that a client wants: the one that it names, if there is such, or a new one."""
    if wish.id:
        try:
            return await kernels_of(request).model(caller(request), wish.id)
        except UnknownSessionError:
            if not wish.name:
                raise
    return await kernels_of(request).start(caller(request), wish.name or DEFAULT, {})


async def _kernel_model(request: Request, session: NotebookSession) -> dict[str, Any] | None:
    """Return the model of a session's kernel; None, and forget the session, if there is no such kernel any longer."""
    try:
        return await kernels_of(request).model(caller(request), session.kernel_id)
    except UnknownSessionError:
        _notebooks(request).remove(caller(request).group, session.id)
        return None


async def _stop(request: Request, session: NotebookSession) -> None:
    try:
        await kernels_of(request).stop(caller(request), session.kernel_id)
    except (UnknownSessionError, SessionEndedError):
        return  # it has ended already
