"""Connection: requests to one server. Every refusal is raised as the error that it is."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote_from_bytes

import aiohttp
from yarl import URL

from orchestrator.errors import ManagerClosedError, ServerUnavailableError, SettingsError, UntrustedServerError
from orchestrator.limits import MIB
from orchestrator.remote.answer import BodyOfAnswer, checked, events_of, refuse_errors
from orchestrator.remote.link import Download, Numbered, Query
from orchestrator.remote.sending import Sending
from orchestrator.telemetry import trace_headers

_CONNECTING = 10.0  # seconds; also for a place among the connections
_QUIET = 60.0  # seconds without a sign of life on a stream: the server sends one every 15 s
_CONNECTIONS = 1000
_ALIVE = aiohttp.ClientTimeout(total=None, connect=_CONNECTING)
_STREAMING = aiohttp.ClientTimeout(total=None, connect=_CONNECTING, sock_read=_QUIET)
# A server that is gone without a word is noticed after some 30 s, also while a long cell says nothing, and so is one
# that does not read what is sent to it.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]
# Seconds in which a server must take the next piece of a large body. A unix socket has no option for it. The server may
# have to wake the session first.
_STUCK = 120.0
_LARGEST = 1024 * MIB  # bytes of an answer
_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
Headers = Mapping[str, str]


class Connection:
    """A pool of connections to one server. A ``Link``; its requests may have headers of their own.

    Args:
        url: such as "http://127.0.0.1:8730".
        token: None: the server needs none.
        uds: the path of the server's unix socket, in place of the address in ``url``.
        verify: for HTTPS: see ``trust``.
        stuck: seconds in which the server must take the next piece of a large body.

    Raises:
        SettingsError: ``url`` is no address of a server; see also ``trust``.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        uds: str | None,
        verify: ssl.SSLContext | str | bool = True,
        *,
        stuck: float = _STUCK,
    ) -> None:
        _check_address(url, with_user=token is None)
        self.url = url
        self._base = url.rstrip("/")
        self._headers = {"Accept-Encoding": "identity"}  # what is compressed could become any number of bytes
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._uds = uds
        self._stuck = stuck
        self._trust = trust(verify) if url.lower().startswith("https:") else True  # to make a context takes 30 ms
        self._session: aiohttp.ClientSession | None = None  # it belongs to an event loop: made at the first request
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

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
        largest: int = _LARGEST,
    ) -> dict[str, Any]:
        """Send a request, and return the answer's JSON.

        Args:
            largest: bytes of the answer.

        Raises:
            ServerUnavailableError: the server does not answer, or does not take the request.
            UntrustedServerError: its certificate is not accepted.
            ServerError: its answer is too large, or no JSON object.
            Any error of the server's.
        """
        head = {**_head(body), **(headers or {})}
        async with (
            _explained(self.url),
            Sending(self._stuck) as sending,
            self._request(method, path, query, data=_content(body), sending=sending, headers=head) as answer,
        ):
            return await checked(answer, largest)

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
        async with (
            _explained(self.url),
            Sending(self._stuck) as sending,
            self._request(
                method, path, data=_content(body), sending=sending, headers=head, timeout=_STREAMING
            ) as answer,
        ):
            await refuse_errors(answer)
            events = events_of(answer, _LARGEST)
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
        async with _explained(self.url), self._request("GET", path, query, headers=headers) as answer:
            await refuse_errors(answer)
            yield BodyOfAnswer(answer, _LARGEST)

    async def upload(
        self, path: str, query: Query, data: bytes | AsyncIterable[bytes], *, headers: Headers | None = None
    ) -> dict[str, Any]:
        """Send a file, and return the answer's JSON.

        Raises:
            See ``ask``; and what ``data`` raises.
        """
        faults: list[Exception] = []
        sent = data if isinstance(data, bytes) else _noting(data, faults)
        async with (
            _explained(self.url, faults),
            Sending(self._stuck) as sending,
            self._request("PUT", path, query, data=sent, sending=sending, headers=headers) as answer,
        ):
            return await checked(answer, _LARGEST)

    def _request(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        *,
        data: bytes | AsyncIterable[bytes] | None = None,
        sending: Sending | None = None,
        headers: Headers | None = None,
        timeout: aiohttp.ClientTimeout = _ALIVE,
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._closed:
            raise ManagerClosedError()
        if self._session is None:
            self._session = self._opened()
        url = URL(self._base + _with(path, query), encoded=True)
        head = {**(headers or {}), **trace_headers()}
        if isinstance(data, bytes) and len(data) > MIB:  # the event loop would wait while it is sent at once
            head["Content-Length"] = str(len(data))
            data = _pieces(data)
        if sending is not None and isinstance(data, AsyncIterable):
            data = sending.each(data)
        return self._session.request(method, url, data=data, headers=head, timeout=timeout, allow_redirects=False)

    def _opened(self) -> aiohttp.ClientSession:
        connector = (
            aiohttp.UnixConnector(self._uds, limit=_CONNECTIONS, keepalive_timeout=10)
            if self._uds
            else aiohttp.TCPConnector(ssl=self._trust, limit=_CONNECTIONS, keepalive_timeout=10, socket_factory=_socket)
        )
        session = aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=MIB,
            auto_decompress=False,
        )
        session._retry_connection = False  # a DELETE or PUT that the server may have begun is not sent again
        return session


def trust(verify: ssl.SSLContext | str | bool) -> ssl.SSLContext:
    """Return what decides whether a server's certificate is accepted.

    Args:
        verify: the file of a certificate authority; True: the system's authorities; False: every certificate is.

    Raises:
        SettingsError: the file cannot be used.
    """
    if not isinstance(verify, str):
        return verify if isinstance(verify, ssl.SSLContext) else _context(verify)
    try:
        return ssl.create_default_context(cafile=verify)
    except OSError as error:
        raise SettingsError(f"the file of a certificate authority {verify!r} cannot be used: {error}.") from error


def _check_address(url: str, *, with_user: bool) -> None:
    try:
        found = URL(url)
        if found.scheme in ("http", "https") and found.host and (with_user or found.user is None):
            return
    except ValueError:
        pass
    raise SettingsError(f"{url[:200]!r} is no address of a server.", remedy="Write it as https://HOST:PORT.")


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Called by aiohttp. Return a socket for a connection."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    for option in _KEEPALIVE:
        made.setsockopt(*option)
    return made


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(content), MIB):
        yield content[begin : begin + MIB]


async def _noting(data: AsyncIterable[bytes], faults: list[Exception]) -> AsyncIterator[bytes]:
    """Yield what ``data`` yields, and keep its exception, in place of which aiohttp raises its own."""
    try:
        async for piece in data:
            yield piece
    except Exception as error:
        faults.append(error)
        raise


@contextlib.asynccontextmanager
async def _explained(url: str, faults: Sequence[Exception] = ()) -> AsyncGenerator[None, None]:
    """Raise what an error of the connection means.

    Args:
        faults: what the caller's own data has raised.
    """
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        fault = error.certificate_error
        raise UntrustedServerError(
            f"the certificate of {url} is not accepted: {getattr(fault, 'verify_message', fault)}.",
            remedy="Name the file of its authority: verify=PATH.",
        ) from error
    except aiohttp.ClientError as error:
        if faults:
            raise faults[0] from None
        undone = isinstance(error, _UNSENT)
        raise ServerUnavailableError(
            f"the server {url} does not answer, or broke off: {error or type(error).__name__}.",
            remedy="Look whether it runs: `cellblock serve`."
            + " What it has done of the request is not known." * (not undone),
            undone=undone,
        ) from error


def _context(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


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
