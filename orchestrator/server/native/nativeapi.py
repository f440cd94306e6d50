"""NativeApi: the native wire, as FastAPI serves it, with its OpenAPI description at ``/openapi.json``."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Scope

from orchestrator.errors import CellblockError, InvalidInputError
from orchestrator.server.answers import Json, Problem
from orchestrator.server.dialect import TokenWire
from orchestrator.server.native import (
    cellroutes,
    commandroutes,
    fileroutes,
    notebookroutes,
    operatorroutes,
    sessionroutes,
    viewroutes,
)
from orchestrator.server.native.access import asks_for_events
from orchestrator.server.native.described import REFUSALS
from orchestrator.server.service import Service

_PUBLIC = frozenset({"/health", "/ready", "/openapi.json", "/docs"})
_UNREADABLE = "There was an error parsing the body"  # FastAPI's, for whatever Python's JSON reader raises
_UPLOADS = ("/files/content", "/files/archive")


class NativeApi(TokenWire):
    """The native wire. It claims every request that no other wire has claimed."""

    app: ASGIApp

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.app = _application(service)

    def claims(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return True

    def is_public(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return scope["path"] in _PUBLIC

    def is_upload(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return scope.get("method") == "PUT" and scope["path"].endswith(_UPLOADS)

    def is_stream(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return asks_for_events(scope) or scope["path"].endswith("/events")


def _application(service: Service) -> FastAPI:
    app = FastAPI(
        title="Cellblock",
        summary="A Jupyter kernel of its own, in a locked container of its own, for every agent that runs code",
        version="1",
        redoc_url=None,
        docs_url=None,
        default_response_class=Json,
        responses=REFUSALS,
        # ``Boundary`` has the request's span, on every wire; FastAPI's own would have the paths of files.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    # A request's route is looked for in this order: what is asked for most often comes first.
    for module in (cellroutes, sessionroutes, notebookroutes, commandroutes, fileroutes, viewroutes, operatorroutes):
        app.include_router(module.router)
    app.include_router(cellroutes.requests)
    app.add_exception_handler(CellblockError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    return app


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, CellblockError)
    return Problem(error)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]]
    return Problem(InvalidInputError(f"the request cannot be used: {'; '.join(faults)[:2000]}."))


async def _refused(_request: Request, error: Exception) -> Response:
    """Answer what Starlette and FastAPI refuse themselves: an unknown path, or a body that could not be read."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, CellblockError):
        return Problem(error.__cause__)
    if error.detail == _UNREADABLE:
        return Problem(InvalidInputError("the body is not JSON in UTF-8, or is nested too deeply."))
    form = {"type": "about:blank", "title": error.detail, "status": error.status_code, "detail": error.detail}
    return Json(form, error.status_code, error.headers, "application/problem+json")
