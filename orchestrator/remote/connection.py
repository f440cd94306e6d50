"""Connection: requests to one server. Every refusal is raised as the error that it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Mapping
from typing import Any
from urllib.parse import quote_from_bytes

import httpx
import httpx_sse

from orchestrator.errors import ServerUnavailableError, SettingsError, UntrustedServerError
from orchestrator.remote.failures import failure
from orchestrator.remote.link import Download, Numbered, Query
from orchestrator.telemetry import trace_headers

_CONNECTING = 10.0  # seconds; also for a place among the connections, and for each part of what is sent
_QUIET = 60.0  # seconds without a sign of life on a stream: the server sends one every 15 s
_CLOSING = 0.4  # seconds that a cancelled caller waits for its connection to close
_CONNECTIONS = 1000
# A server that is gone without a word is noticed after some 30 s, also while a long cell says nothing.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
_LARGEST_ERROR = 1024 * 1024  # bytes of a refusal that are read
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
Headers = Mapping[str, str]


class Connection:
    """A pool of connections to one server. A ``Link``; its requests may have headers of their own.

    Args:
        url: such as "http://127.0.0.1:8730".
        token: None: the server needs none.
        uds: the path of the server's unix socket, in place of the address in ``url``.
        verify: for HTTPS: see ``trust``.

    Raises:
        SettingsError: see ``trust``.
    """

    def __init__(
        self, url: str, token: str | None, uds: str | None, verify: ssl.SSLContext | str | bool = True
    ) -> None:
        self.url = url
        transport = httpx.AsyncHTTPTransport(
            uds=uds,
            verify=trust(verify) if url.startswith("https:") else False,  # to make a context takes 30 ms
            limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=100, keepalive_expiry=10),
            socket_options=[] if uds else _KEEPALIVE,
        )
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(_CONNECTING, read=None),
            transport=transport,
            trust_env=False,
            event_hooks={"request": [_traced]},
        )

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._client.is_closed

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def staying(self) -> Connection:
        """See ``Link``."""
        return self

    async def acquire(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Make an agent's session, or return the one that it has, awake.

        Raises:
            See ``ask``.
        """
        return await self.ask("POST", "/v1/sessions", body)

    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Query | None = None,
        headers: Headers | None = None,
    ) -> dict[str, Any]:
        """Send a request, and return the answer's JSON.

        Raises:
            ServerUnavailableError: the server does not answer.
            UntrustedServerError: its certificate is not accepted.
            Any error of the server's.
        """
        head = {**_head(body), **(headers or {})}
        async with _explained(self.url):
            answer = await _closing(
                self._client.request(method, _with(path, query), content=_content(body), headers=head)
            )
        if answer.is_error:
            raise failure(_json(answer.content), answer.status_code)
        found: dict[str, Any] = answer.json()
        return found

    @contextlib.asynccontextmanager
    async def events(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        seen: int = 0,
        headers: Headers | None = None,
    ) -> AsyncGenerator[Numbered, None]:
        """Yield a stream of server-sent events, each with its number.

        Args:
            seen: how many of the numbered events to leave out.

        Raises:
            See ``ask``; also while the stream is read.
        """
        after = {"Last-Event-ID": str(seen)} if seen else {}
        head = {**_head(body), "Accept": "text/event-stream", **after, **(headers or {})}
        timeout = httpx.Timeout(_CONNECTING, read=_QUIET)
        async with (
            _explained(self.url),
            self._client.stream(method, path, content=_content(body), headers=head, timeout=timeout) as answer,
        ):
            await _refuse_errors(answer)
            events = _parsed(answer)
            try:
                yield events
            finally:
                await events.aclose()

    @contextlib.asynccontextmanager
    async def download(
        self, path: str, query: Query, *, headers: Headers | None = None
    ) -> AsyncGenerator[Download, None]:
        """Yield an answer whose body is read piece by piece.

        Raises:
            See ``ask``.
        """
        async with _explained(self.url), self._client.stream("GET", _with(path, query), headers=headers) as answer:
            await _refuse_errors(answer)
            yield answer

    async def upload(
        self, path: str, query: Query, data: bytes | AsyncIterable[bytes], *, headers: Headers | None = None
    ) -> dict[str, Any]:
        """Send a file, and return the answer's JSON.

        Raises:
            See ``ask``; and what ``data`` raises.
        """
        async with _explained(self.url):
            answer = await self._client.put(_with(path, query), content=data, headers=headers)
        if answer.is_error:
            raise failure(_json(answer.content), answer.status_code)
        found: dict[str, Any] = answer.json()
        return found


async def _traced(request: httpx.Request) -> None:
    """Name the caller's span. httpx calls it with each request, in the caller's context."""
    request.headers.update(trace_headers())


def trust(verify: ssl.SSLContext | str | bool) -> ssl.SSLContext:
    """Return what decides whether a server's certificate is accepted.

    Args:
        verify: the file of a certificate authority; True: the system's authorities; False: every certificate is.

    Raises:
        SettingsError: the file cannot be used.
    """
    if not isinstance(verify, str):
        return verify if isinstance(verify, ssl.SSLContext) else httpx.create_ssl_context(verify, trust_env=False)
    try:
        return ssl.create_default_context(cafile=verify)
    except OSError as error:
        raise SettingsError(f"the file of a certificate authority {verify!r} cannot be used: {error}.") from error


async def _closing(request: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
    """Make a request. If the caller is cancelled, close the connection, also if it is cancelled again meanwhile.

    The server interrupts what it does for a client that is gone. A connection that a second cancellation leaves half
    closed would look alive to it.
    """
    asking = asyncio.ensure_future(request)
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        asking.cancel()
        await asyncio.wait({asking}, timeout=_CLOSING)
        raise


async def _parsed(answer: httpx.Response) -> Numbered:
    async for event in httpx_sse.EventSource(answer).aiter_sse():
        form = json.loads(event.data)
        if form["type"] == "problem":
            raise failure(form["problem"], 500)
        yield int(event.id) if event.id.isdigit() else None, form


async def _refuse_errors(answer: httpx.Response) -> None:
    if answer.is_error:
        body = b""
        async for piece in answer.aiter_bytes():
            body += piece
            if len(body) > _LARGEST_ERROR:
                break
        raise failure(_json(body), answer.status_code)


@contextlib.asynccontextmanager
async def _explained(url: str) -> AsyncGenerator[None, None]:
    try:
        yield
    except httpx.TransportError as error:
        if (fault := _certificate_fault(error)) is not None:
            raise UntrustedServerError(
                f"the certificate of {url} is not accepted: {fault.verify_message}.",
                remedy="Name the file of its authority: verify=PATH.",
            ) from error
        undone = isinstance(error, _UNSENT)
        raise ServerUnavailableError(
            f"the server {url} does not answer, or broke off: {error or type(error).__name__}.",
            remedy="Look whether it runs: `cellblock serve`."
            + " What it has done of the request is not known." * (not undone),
            undone=undone,
        ) from error


def _certificate_fault(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def _with(path: str, query: Query | None) -> str:
    """Return a path with a query. Bytes of file names that are no UTF-8 are sent as they are."""
    if not query:
        return path
    parts = [
        f"{name}={quote_from_bytes(_text(value).encode('utf-8', 'surrogateescape'))}" for name, value in query.items()
    ]
    return f"{path}?{'&'.join(parts)}"


def _text(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _content(body: Mapping[str, Any] | None) -> bytes | None:
    return None if body is None else json.dumps(body).encode()


def _head(body: Mapping[str, Any] | None) -> dict[str, str]:
    return {} if body is None else {"Content-Type": "application/json"}


def _json(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return content[:500].decode("utf-8", "replace")
