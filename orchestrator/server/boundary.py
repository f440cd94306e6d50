"""Boundary: what every request passes first: who calls, how much and how fast it may send, and the access log.

Invariants:
- No handler runs before the caller is known, unless the request is public.
- A body is bounded in size, and each wait for more of it in time. So is each wait for a client to read.
- A caller whose token was revoked loses its open requests and streams within two seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Message, Receive, Scope, Send

from orchestrator.errors import (
    CellblockError,
    ForbiddenError,
    NotOwnerError,
    RequestTimeoutError,
    RequestTooLargeError,
    ServerError,
    ServerUnavailableError,
    UnauthorizedError,
)
from orchestrator.limits import MIB
from orchestrator.principal import Principal
from orchestrator.server.dialect import Dialect
from orchestrator.server.service import Service
from orchestrator.server.waiting import ClientGoneError, stopped
from orchestrator.telemetry import request_span

_log = logging.getLogger(__name__)
access = logging.getLogger("orchestrator.server.access")
BODY = 3 * MIB  # bytes: the code of a cell may have 1 MiB, and JSON may write a byte as six
_UPLOAD = 1024 * MIB  # bytes, as ``FileCalls``
_SMALL = 64 * 1024  # bytes of a refused request's body that are read all the same
_RESTING = 1.0  # seconds in which they must come
_SENDING = 30.0  # seconds in which a client must send the next part of its body
_READING = 60.0  # seconds in which a client must read what is sent to it
_RECHECK = 1.0  # seconds between two looks at the token of an open request
_GONE = 499  # the status in the access log of a request whose client has gone
_TRACE = ("traceparent", "tracestate")
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(slots=True)
class _Exchange:
    """One request and its answer, for the access log."""

    scope: Scope
    id: str
    began: float
    status: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    started: bool = False
    body_over: bool = False


class Boundary:
    """The server's outermost ASGI application.

    Args:
        dialects: the wires; the first that claims a request has it, and the last one claims all.
    """

    def __init__(self, service: Service, dialects: Sequence[Dialect]) -> None:
        self._service = service
        self._dialects = tuple(dialects)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            return
        dialect = next(each for each in self._dialects if each.claims(scope))
        exchange = _Exchange(scope, secrets.token_hex(8), time.monotonic())
        scope.setdefault("state", {})["request_id"] = exchange.id
        principal: Principal | None = None
        try:
            self._refuse_foreign_pages(scope)
            if not dialect.is_public(scope):
                principal = scope["state"]["principal"] = await dialect.principal(scope)
                self._refuse_what_is_for_another(scope)
                self._refuse_when_draining(scope)
            await self._serve(
                dialect, principal, exchange, _receiving(exchange, receive, dialect), _sending(exchange, send)
            )
        except CellblockError as error:
            await self._refuse(dialect, error, exchange, scope, receive, send)
        except ClientGoneError:
            exchange.status = _GONE
        except asyncio.CancelledError:  # by uvicorn, once the time to end is over
            ended = ServerUnavailableError("the server shuts down; what it was asked for was interrupted.")
            with contextlib.suppress(BrokenOffError):
                await self._refuse(dialect, ended, exchange, scope, receive, send)
            raise
        except Exception:  # noqa: BLE001 - the client gets an answer, and the log has the reason
            _log.exception("request %s failed", exchange.id)
            failure = ServerError(f"the server failed; its log has the reason under {exchange.id}.")
            await self._refuse(dialect, failure, exchange, scope, receive, send)
        finally:
            _note(exchange, principal)

    async def _serve(
        self, dialect: Dialect, principal: Principal | None, exchange: _Exchange, receive: Receive, send: Send
    ) -> None:
        scope = exchange.scope
        if principal is None:
            return await dialect.app(scope, receive, send)
        stream = scope["type"] == "websocket" or dialect.is_stream(scope)
        with self._service.slots.taken(principal, stream=stream), _traced(exchange):
            await self._while_valid(principal, asyncio.ensure_future(dialect.app(scope, receive, send)))

    async def _while_valid(self, principal: Principal, serving: asyncio.Future[None]) -> None:
        """Wait for a request's end, or end it when its token is no longer valid.

        Raises:
            UnauthorizedError: the token was revoked, or expired.
        """
        try:
            while not serving.done():
                await asyncio.wait({serving}, timeout=_RECHECK)
                if not serving.done() and not await self._service.authentication.still_valid(principal):
                    raise UnauthorizedError("the token was revoked, or has expired.")
            serving.result()
        finally:
            await stopped(serving)

    def _refuse_when_draining(self, scope: Scope) -> None:
        if self._service.draining and scope.get("method", "GET") not in ("GET", "HEAD"):
            raise ServerUnavailableError(
                "the server shuts down, and takes no new work.", remedy="Try again in a moment.", undone=True
            )

    def _refuse_what_is_for_another(self, scope: Scope) -> None:
        """Refuse a request that is for a process that had this address before: what that one began is not known here.

        Raises:
            NotOwnerError: it names another process.
        """
        wanted = dict(scope["headers"]).get(b"cellblock-process")
        if wanted is not None and wanted != self._service.process_id.encode():
            raise NotOwnerError("the request is for another process of the server.", session_id="", undone=True)

    def _refuse_foreign_pages(self, scope: Scope) -> None:
        """Refuse what a web page of another origin sends; without tokens, also a host name that is not this machine's.

        A page that a user of this machine visits could reach the server otherwise, under a name of the page's own.

        Raises:
            ForbiddenError: it is refused.
        """
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        host = headers.get(b"host", b"").decode("latin-1")
        if origin and origin != "null" and urlsplit(origin).netloc == host:
            origin = ""
        if origin:
            raise ForbiddenError("requests from web pages of another origin are refused.")
        is_unix = (scope.get("server") or ("", 0))[1] is None
        if self._service.authentication.is_open and not is_unix and _name_of(host) not in _LOCAL_NAMES:
            raise ForbiddenError(
                f"without tokens the server answers to the names of this machine, not to {host[:100]!r}.",
                remedy="Make a token: `cellblock token create NAME`.",
            )

    async def _refuse(
        self, dialect: Dialect, error: CellblockError, exchange: _Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer with an error. An answer that has begun is broken off: the client sees that it is not complete."""
        if exchange.started:
            raise BrokenOffError from error
        send = _sending(exchange, send)
        if scope["type"] == "websocket":
            await receive()
            await send(
                {
                    "type": "websocket.close",
                    "code": 4000 + dialect.refusal(error).status_code,
                    "reason": str(error)[:120],
                }
            )
            return
        response = dialect.refusal(error)
        await _read_rest(exchange, receive)
        if not exchange.body_over:
            response.headers["connection"] = "close"  # what is left of the body is not read
        await response(scope, receive, send)


class BrokenOffError(Exception):
    """An answer was broken off. uvicorn closes the connection, so that the client sees that it is not complete."""


def _receiving(exchange: _Exchange, receive: Receive, dialect: Dialect) -> Receive:
    """Bound what a client sends, and how long it takes for each part."""
    if exchange.scope["type"] == "websocket":
        return receive
    most = _UPLOAD if dialect.is_upload(exchange.scope) else BODY
    declared = next((value for name, value in exchange.scope["headers"] if name == b"content-length"), b"")
    too_large = RequestTooLargeError(f"the body exceeds {most} bytes.", limit=most)

    async def bounded() -> Message:
        if exchange.body_over:
            return await receive()  # waits until the client is gone
        if declared.isdigit() and int(declared) > most:
            raise too_large
        try:
            async with asyncio.timeout(_SENDING):
                message = await receive()
        except TimeoutError:
            raise RequestTimeoutError(f"no part of the body came for {_SENDING:g} s.") from None
        if message["type"] == "http.request":
            exchange.bytes_in += len(message.get("body", b""))
            if exchange.bytes_in > most:
                raise too_large
            exchange.body_over = not message.get("more_body", False)
        return message

    return bounded


async def _read_rest(exchange: _Exchange, receive: Receive) -> None:
    """Read the rest of a small body: a connection that is closed before is reset, and the answer may be lost."""
    headers = dict(exchange.scope["headers"])
    declared = headers.get(b"content-length", b"" if b"transfer-encoding" in headers else b"0")
    if exchange.body_over or not declared.isdigit() or int(declared) > _SMALL:
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_RESTING):
            while not exchange.body_over:
                message = await receive()
                exchange.body_over = message["type"] != "http.request" or not message.get("more_body", False)


def _sending(exchange: _Exchange, send: Send) -> Send:
    """Bound how long a client takes to read, and name the request in the answer."""

    async def bounded(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            exchange.started, exchange.status = True, message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", exchange.id.encode())]
        elif message["type"] == "http.response.body":
            exchange.bytes_out += len(message.get("body", b""))
        elif message["type"] == "websocket.accept":
            exchange.started, exchange.status = True, 101
        try:
            async with asyncio.timeout(_READING):
                await send(message)
        except TimeoutError:
            raise RequestTimeoutError(f"the client has read nothing for {_READING:g} s.") from None

    return bounded


@contextlib.contextmanager
def _traced(exchange: _Exchange) -> Iterator[None]:
    """Open the span of a request, below the caller's. It names the request as the access log does."""
    headers = dict(exchange.scope["headers"])
    caller = {name: headers[name.encode()].decode("latin-1") for name in _TRACE if name.encode() in headers}
    with request_span(caller, method=exchange.scope.get("method", "WS"), request_id=exchange.id) as span:
        try:
            yield
        finally:
            span.set_attribute("cellblock.status", exchange.status)


def _name_of(host: str) -> str:
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def _note(exchange: _Exchange, principal: Principal | None) -> None:
    """Write the access log: who, what and how, and nothing that was sent."""
    fields: dict[str, Any] = {
        "id": exchange.id,
        "method": exchange.scope.get("method", "WS"),
        "path": exchange.scope["path"][:300],
        "status": exchange.status,
        "ms": round((time.monotonic() - exchange.began) * 1000, 1),
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "group": None if principal is None else principal.group,
        "token": None if principal is None else principal.name,
    }
    access.info(json.dumps(fields))
