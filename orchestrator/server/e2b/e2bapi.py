"""E2bApi: E2B's wire as a dialect of the server: its control plane, its interpreter and its envd."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.errors import CellblockError, InvalidInputError, UnauthorizedError
from orchestrator.principal import Principal
from orchestrator.server.answers import Json
from orchestrator.server.authentication import token_of
from orchestrator.server.directory import Served
from orchestrator.server.e2b import (
    connectwire,
    envdfiles,
    filesystemrpc,
    interpreter,
    processrpc,
    sandboxroutes,
    snapshotroutes,
)
from orchestrator.server.e2b.accesskeys import token_in
from orchestrator.server.e2b.addresses import (
    ENVD,
    INTERPRETER,
    address_of,
    headers_of,
    is_control,
    is_signed,
    is_stream,
    is_upload,
    query_of,
)
from orchestrator.server.e2b.e2berrors import E2bError, Refusal, connect_error, control_error, data_error, port_closed
from orchestrator.server.e2b.keepalive import with_keepalive
from orchestrator.server.e2b.sandboxes import running
from orchestrator.server.e2b.wirecontext import E2b
from orchestrator.server.problems import headers_of as error_headers
from orchestrator.server.service import Service

_PING = 50.0  # seconds, unless the client says otherwise
_ERRORS = {404: "not found", 405: "method not allowed"}
Failure = Callable[[Refusal], tuple[int, dict[str, Any]]]


class E2bApi:
    """E2B's wire. It claims its control plane's paths, and what names a sandbox in a header or the host name."""

    app: ASGIApp

    def __init__(self, service: Service) -> None:
        self._e2b = E2b(service)
        self._service = service
        self.app = _Planes(self._e2b)

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """See ``Dialect``."""
        return contextlib.nullcontext()

    def claims(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return scope["type"] == "http" and (address_of(scope) is not None or is_control(scope["path"]))

    def is_public(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return False

    def is_upload(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return address_of(scope) is not None and is_upload(scope)

    def is_stream(self, scope: Scope) -> bool:
        """See ``Dialect``."""
        return address_of(scope) is not None and is_stream(scope)

    async def principal(self, scope: Scope) -> Principal:
        """See ``Dialect``. A request to a sandbox has its access token, a signature, or an API key."""
        address = address_of(scope)
        if address is None:
            token = token_of(dict(scope["headers"]))
            return await self._service.authentication.principal(None if token is None else token_in(token))
        await self._e2b.keys.load()
        headers = headers_of(scope)
        access = headers.get("x-access-token") or headers.get("e2b-traffic-access-token")
        if access:
            sandbox_id, token_id = address[0], self._e2b.keys.token_id(address[0], access)
        elif is_signed(scope):
            sandbox_id, token_id = self._signer(scope)
        elif key := headers.get("x-api-key"):
            return await self._service.authentication.principal(token_in(key))
        else:
            raise UnauthorizedError("the request has no access token of the sandbox.")
        principal = await self._service.authentication.of_token_id(token_id)
        if principal is None:
            raise UnauthorizedError("the access token is not of this sandbox.")
        scope["state"]["e2b_sandbox"] = sandbox_id
        return principal

    def refusal(self, error: CellblockError) -> Response:
        """See ``Dialect``."""
        status, form = control_error(error)
        return Json(form, status, error_headers(error))

    def _signer(self, scope: Scope) -> tuple[str, str]:
        query = query_of(scope)
        return self._e2b.keys.signer(
            query.get("signature", ""),
            query.get("path", ""),
            "read" if scope["method"] in ("GET", "HEAD") else "write",
            query.get("username", ""),
            query.get("signature_expiration", ""),
        )


class _Planes:
    """Sends a request to the control plane, or to a sandbox."""

    def __init__(self, e2b: E2b) -> None:
        self.e2b = e2b
        self._control = _Plane(e2b, [*sandboxroutes.routes, *snapshotroutes.routes], control_error)
        rpc = [
            Route("/filesystem.Filesystem/{method}", _call_filesystem, methods=["POST"]),
            Route("/process.Process/{method}", _call_process, methods=["POST"]),
        ]
        self._ports = {
            ENVD: _Plane(e2b, [*envdfiles.routes, *rpc], data_error),
            INTERPRETER: _Plane(e2b, interpreter.routes, data_error),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.e2b.keys.load()
        address = address_of(scope)
        if address is None:
            return await self._control(scope, receive, send)
        sandbox_id, port = scope["state"].get("e2b_sandbox") or address[0], address[1]
        plane = self._ports.get(port) or self._ports[ENVD]
        await plane.of_sandbox(sandbox_id, port, scope, receive, send)


class _Plane:
    """Some routes, and how they say no.

    Attributes:
        e2b: for the routes.
    """

    def __init__(self, e2b: E2b, routes: Sequence[BaseRoute], failure: Failure) -> None:
        self.e2b = e2b
        self._router = Router(list(routes), redirect_slashes=False)
        self._failure = failure

    async def of_sandbox(self, sandbox_id: str, port: int, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request to a port of a sandbox that runs."""
        principal: Principal = scope["state"]["principal"]
        try:
            served = await running(self.e2b.directory, principal, sandbox_id, sandboxroutes.DEFAULT_TTL)
            if port not in (ENVD, INTERPRETER):
                raise port_closed(sandbox_id, port)
        except (CellblockError, E2bError) as error:
            return await self._answer(error)(scope, receive, send)
        scope["state"]["served"] = served
        await self(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # Starlette then raises HTTPException for a path that it does not have
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._router(scope, receive, sending)
        except HTTPException as error:
            message = _ERRORS.get(error.status_code, error.detail)
            await Json({"code": error.status_code, "message": message}, error.status_code)(scope, receive, send)
        except (CellblockError, E2bError) as error:
            if begun:
                raise  # the connection breaks off
            await self._answer(error)(scope, receive, send)

    def _answer(self, error: Refusal) -> Response:
        status, form = self._failure(error)
        return Json(form, status, error_headers(error) if isinstance(error, CellblockError) else None)


async def _call_filesystem(request: Request) -> Response:
    served: Served = request.state.served
    method = request.path_params["method"]
    if method == "WatchDir":
        return await _streamed(request, filesystemrpc.watch_dir(served, await _first(request)), "filesystem")
    if method in filesystemrpc.CALLS:
        return await _answered(filesystemrpc.CALLS[method], request)
    return _unknown(method)


async def _call_process(request: Request) -> Response:
    served: Served = request.state.served
    method = request.path_params["method"]
    if method == "Start":
        return await _streamed(request, processrpc.start(served, await _first(request), _timeout(request)))
    if method == "Connect":
        return await _streamed(request, processrpc.connect(served, await _first(request)))
    if method == "StreamInput":
        return await _taken(request)
    if method in processrpc.CALLS:
        return await _answered(processrpc.CALLS[method], request)
    return _unknown(method)


async def _answered(call: Callable[..., Any], request: Request) -> Response:
    """Answer a call that has one request and one answer."""
    try:
        body = connectwire.parsed(await request.body())
        return Json(await call(request.state.served, body))
    except (CellblockError, E2bError) as error:
        code, message = connect_error(error)
        if code == "unavailable":
            raise
        return Json(connectwire.error_form(code, message), connectwire.STATUS[code])


async def _taken(request: Request) -> Response:
    """Answer a call whose request is a stream."""
    try:
        answer = await processrpc.stream_input(request.state.served, request.stream())
        data = connectwire.envelope(answer) + connectwire.last_envelope()
    except (CellblockError, E2bError) as error:
        data = connectwire.last_envelope(*connect_error(error))
    return Response(data, media_type=connectwire.STREAM_TYPE)


async def _first(request: Request) -> dict[str, Any]:
    """Return the one message of a request whose answer is a stream."""
    found = connectwire.Envelopes().feed(await request.body())
    if len(found) != 1:
        raise InvalidInputError("the request has not one message.")
    return found[0]


async def _streamed(request: Request, messages: AsyncGenerator[bytes, None], ping: str = "process") -> Response:
    """Answer with a stream, which ends with an error if there is one."""
    event: dict[str, Any] = {"keepalive": {}}
    alive = connectwire.envelope(event if ping == "filesystem" else {"event": event})
    stream = with_keepalive(_ended(messages), _pause(request), alive)
    return StreamingResponse(stream, media_type=connectwire.STREAM_TYPE)


async def _ended(messages: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        async for message in messages:
            yield message
        yield connectwire.last_envelope()
    except (CellblockError, E2bError) as error:
        code, text = connect_error(error)
        if code == "unavailable":
            raise  # the connection breaks off: the clients then ask whether the sandbox is still there
        yield connectwire.last_envelope(code, text)
    finally:
        await messages.aclose()


def _timeout(request: Request) -> float | None:
    text = request.headers.get("connect-timeout-ms", "")
    return int(text[:12]) / 1000 if text.isascii() and text.isdigit() and int(text[:12]) else None


def _pause(request: Request) -> float:
    text = request.headers.get("keepalive-ping-interval", "")
    return float(min(max(int(text), 1), 600)) if text.isascii() and text.isdigit() and len(text) < 6 else _PING


def _unknown(method: str) -> Response:
    return Json(connectwire.error_form("unimplemented", f"there is no method {method[:64]!r}."), 404)
