"""GatewayApi: the wire of Jupyter Server's kernels API, at ``/api``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs
from weakref import WeakValueDictionary

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope
from starlette.websockets import WebSocket

from orchestrator.errors import CellblockError, SessionEndedError, UnknownKernelNameError
from orchestrator.principal import Principal
from orchestrator.server.answers import Json
from orchestrator.server.authentication import token_of
from orchestrator.server.dialect import TokenWire
from orchestrator.server.gateway import kernelroutes, notebooksessionroutes
from orchestrator.server.gateway.gatewaykernels import GatewayKernels, time_text
from orchestrator.server.gateway.notebooksessions import NotebookSessions
from orchestrator.server.problems import headers_of, status_of
from orchestrator.server.service import Service

_ROOT = "/api"
_VERSION: Final = "2.21.1"  # of Jupyter Server, whose API this is
_STATUS: Final = {UnknownKernelNameError: HTTPStatus.NOT_IMPLEMENTED, SessionEndedError: HTTPStatus.NOT_FOUND}


class GatewayApi(TokenWire):
    """The wire. A token may come in the address too: WebSockets of browsers have no headers."""

    app: ASGIApp

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._kernels = GatewayKernels(service)
        self._began = time.time()
        routes = [
            Route(_ROOT, _version, methods=["GET"]),
            Route(f"{_ROOT}/status", self._status, methods=["GET"]),
            Route(f"{_ROOT}/me", _identity, methods=["GET"]),
            *kernelroutes.routes,
            *notebooksessionroutes.routes,
        ]
        handlers: dict[Any, Any] = {CellblockError: _failed, HTTPException: _unknown}
        app = Starlette(routes=routes, exception_handlers=handlers)
        app.state.kernels, app.state.notebooks = self._kernels, NotebookSessions()
        app.state.opening = WeakValueDictionary()
        self.app = app

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """See ``Dialect``."""
        try:
            yield
        finally:
            await self._kernels.close()

    def claims(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return bool(scope["path"] == _ROOT or scope["path"].startswith(f"{_ROOT}/"))

    async def principal(self, scope: Scope) -> Principal:
        """See ``Dialect``."""
        token = token_of(dict(scope["headers"]))
        if token is None:
            token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [None])[0]
        return await self._service.authentication.principal(token)

    def refusal(self, error: CellblockError) -> Response:
        """See ``Dialect``."""
        return _refusal(error)

    async def _status(self, request: Request) -> Response:
        principal: Principal = request.scope["state"]["principal"]
        models = await self._kernels.models(principal)
        return Json(
            {
                "started": time_text(self._began),
                "last_activity": max((model["last_activity"] for model in models), default=time_text(self._began)),
                "kernels": len(models),
                "connections": sum(model["connections"] for model in models),
            }
        )


async def _version(_request: Request) -> Response:
    return Json({"version": _VERSION})


async def _identity(request: Request) -> Response:
    principal: Principal = request.scope["state"]["principal"]
    name = principal.name
    identity = {"username": name, "name": name, "display_name": name, "initials": None, "avatar_url": None}
    return Json({"identity": {**identity, "color": None}, "permissions": {}})


def _refusal(error: CellblockError) -> Response:
    """Return an error as Jupyter Server's clients read it."""
    status = _STATUS.get(type(error), status_of(error))
    status = HTTPStatus.BAD_REQUEST if status == HTTPStatus.UNPROCESSABLE_ENTITY else status
    return Json({"message": str(error), "reason": None, "code": error.code}, status, headers_of(error))


async def _failed(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, CellblockError)
    response = _refusal(error)
    if isinstance(connection, WebSocket):
        await connection.send_denial_response(response)
        return None
    return response


async def _unknown(connection: HTTPConnection, error: Exception) -> Response | None:
    assert isinstance(error, HTTPException)
    response = Json({"message": error.detail, "reason": None}, error.status_code)
    if isinstance(connection, WebSocket):
        await connection.send_denial_response(response)
        return None
    return response
