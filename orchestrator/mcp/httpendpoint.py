"""HttpEndpoint: the streamable HTTP of an MCP server as an ASGI application, with a principal for each request."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from orchestrator.errors import InvalidInputError
from orchestrator.mcp.handles import check_owner

_MOST_CONNECTIONS = 1000  # sessions of the protocol of 2025 that are open at once
_IDLE = 1800.0  # seconds after which an unused one ends; the sandbox's session stays
_LARGEST_REQUEST = 8 * 1024 * 1024  # bytes

PrincipalOf = Callable[[Request], str | None]
"""Returns who sends a request; None: nobody who may. The endpoint calls it for every request, before anything else."""


class HttpEndpoint:
    """An ASGI application. Mount it at one path, and keep ``running`` open while it serves.

    A connection of the protocol of 2025 belongs to the principal that opened it: for others its id does not exist.
    """

    def __init__(self, server: MCPServer[Any], principal_of: PrincipalOf, *, any_host: bool) -> None:
        self._principal_of = principal_of
        server.streamable_http_app(
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False) if any_host else None,
            max_sessions=_MOST_CONNECTIONS,
            session_idle_timeout=_IDLE,
            max_request_body_size=_LARGEST_REQUEST,
        )
        self._sessions = server.session_manager

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve while the context is open. It can be opened once."""
        async with self._sessions.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Starlette and the server call it."""
        if scope["type"] != "http":
            return
        try:
            principal = self._principal_of(Request(scope))
            owner = None if principal is None else check_owner(principal)
        except InvalidInputError as error:
            await JSONResponse({"error": error.as_dict()}, status_code=403)(scope, receive, send)
            return
        if owner is None:
            headers = {"WWW-Authenticate": "Bearer"}
            body = {"error": {"code": "unauthorized", "message": "the request has no valid token."}}
            await JSONResponse(body, status_code=401, headers=headers)(scope, receive, send)
            return
        user = AuthenticatedUser(AccessToken(token="", client_id=owner, scopes=[]))
        await self._sessions.handle_request({**scope, "user": user}, receive, send)


def owner_of_request(request: Request) -> str:
    """Return the principal that the endpoint has found for a request."""
    user = request.scope["user"]
    assert isinstance(user, AuthenticatedUser), "the endpoint sets it"
    return user.username
