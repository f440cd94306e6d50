"""What every route of the native API needs: the caller, the service, and the session that a path names."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request
from starlette.requests import HTTPConnection
from starlette.types import Scope

from orchestrator.errors import ForbiddenError
from orchestrator.principal import Principal
from orchestrator.server.directory import Served
from orchestrator.server.service import Service


def service_of(connection: HTTPConnection) -> Service:
    """Return the service. A route that is asked for often calls this: it costs less than a dependency."""
    service: Service = connection.app.state.service
    return service


def caller_of(connection: HTTPConnection) -> Principal:
    """Return who calls."""
    principal: Principal = connection.scope["state"]["principal"]
    return principal


# FastAPI runs what is not a coroutine in a thread, which takes 0.2 ms.
async def _service(connection: HTTPConnection) -> Service:
    return service_of(connection)


async def _principal(connection: HTTPConnection) -> Principal:
    return caller_of(connection)


async def _operator(connection: HTTPConnection) -> Principal:
    principal = caller_of(connection)
    if not principal.is_operator:
        raise ForbiddenError("this needs a token with the right `operator`.")
    return principal


TheService = Annotated[Service, Depends(_service)]
Caller = Annotated[Principal, Depends(_principal)]
Operator = Annotated[Principal, Depends(_operator)]
SessionId = Annotated[str, Path(max_length=64, description="The session, as `POST /v1/sessions` returned it.")]


async def _served(connection: HTTPConnection, session_id: SessionId) -> Served:
    return await service_of(connection).directory.find(caller_of(connection), session_id)


TheSession = Annotated[Served, Depends(_served)]


def wants_events(request: Request) -> bool:
    """Return whether the client asks for server-sent events."""
    return asks_for_events(request.scope)


def asks_for_events(scope: Scope) -> bool:
    """Return whether any of a request's Accept headers has server-sent events.

    ``Boundary`` and the routes must agree: it ends a stream whose token is revoked, and counts the open ones.
    """
    return any(name == b"accept" and b"text/event-stream" in value for name, value in scope["headers"])
