"""Serving: the server's sockets, and its end: at SIGTERM it refuses new work, lets requests end, and keeps sessions."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn

from orchestrator.errors import SettingsError
from orchestrator.server.boundary import Boundary, BrokenOffError
from orchestrator.server.doors import dialects
from orchestrator.server.httpprotocol import HttpProtocol
from orchestrator.server.service import Service
from orchestrator.server.websocketprotocol import WebSocketProtocol

_SOCKETS = 2048  # connections at once
_LARGEST_MESSAGE = 2 * 1024 * 1024  # bytes of a WebSocket message


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens.

    Attributes:
        uds: the path of a unix socket, in place of host and port. Only this user can connect to it.
        certificate, key: PEM files for TLS; None: none.
    """

    host: str = "127.0.0.1"
    port: int = 8730
    uds: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.uds is not None or self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    def __str__(self) -> str:
        if self.uds is not None:
            return f"unix:{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.certificate is None else 'https'}://{host}:{self.port}"


async def serve(
    service: Service, address: Address, *, drain_s: float = 10.0, ready: Callable[[Address], None] = lambda _: None
) -> None:
    """Serve until SIGTERM or SIGINT, then close with every session kept.

    Args:
        drain_s: seconds that open requests have to end; what still runs then is interrupted.
        ready: called once connections are taken, with the address and the port that was chosen for port 0.

    Raises:
        SettingsError: the address can be reached from elsewhere and there are no tokens, or it cannot be used.
        See ``Service.running``.
    """
    async with service.running():
        if service.authentication.is_open and not address.is_local:
            raise SettingsError(
                f"without tokens, everybody who reaches {address} could run code here; nothing was started.",
                remedy="Make a token: `cellblock token create NAME`. Or listen on 127.0.0.1, or on --uds PATH.",
            )
        wires = dialects(service)
        config = uvicorn.Config(
            Boundary(service, wires),
            http=HttpProtocol,
            ws=WebSocketProtocol,
            ws_max_size=_LARGEST_MESSAGE,
            ws_per_message_deflate=False,  # 10 MB of outputs would hold the event loop up for 0.3 s
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=max(1, round(drain_s)),
            limit_concurrency=_SOCKETS,
            ssl_certfile=None if address.certificate is None else str(address.certificate),
            ssl_keyfile=None if address.key is None else str(address.key),
            proxy_headers=False,
        )
        logging.getLogger("uvicorn.error").addFilter(_is_news)
        listening = _bind(address)
        port = address.port if address.uds is not None else listening.getsockname()[1]
        server = _Server(config, service, lambda: ready(replace(address, port=port)))
        try:
            async with contextlib.AsyncExitStack() as stack:
                for wire in wires:
                    await stack.enter_async_context(wire.running())
                await server.serve([listening])
        finally:
            listening.close()
            if address.uds is not None:
                address.uds.unlink(missing_ok=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a line of uvicorn's log is worth one. Below warnings it has addresses, with the tokens in them."""
    broken_off = bool(record.exc_info and isinstance(record.exc_info[1], BrokenOffError))
    return record.levelno >= logging.WARNING and not broken_off


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Called by uvicorn. Its own form raises the signal again at the end, while the managers still close."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn."""
        await super().startup(sockets)
        # What is loaded by now stays until the end. Measured: with it, each full collection held up the event loop for
        # 0.33 s on a loaded machine, and without it for less than a millisecond.
        gc.collect()
        gc.freeze()
        self._service.lag.begin()
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn once a signal has come."""
        self._service.draining = True
        await super().shutdown(sockets)


def _bind(address: Address) -> socket.socket:
    """Return a listening socket.

    Raises:
        SettingsError: the address cannot be used.
    """
    try:
        if address.uds is None:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            # asyncio sets TCP_NODELAY only on sockets that name the protocol; else a small answer takes 40 ms more.
            listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((address.host, address.port))
        else:
            listening = _bind_unix(address.uds)
    except OSError as error:
        raise SettingsError(
            f"the server cannot listen on {address}: {error.strerror or error}.",
            remedy="Another server may run there: choose --port, or end it.",
        ) from error
    listening.setblocking(False)
    return listening


def _bind_unix(path: Path) -> socket.socket:
    """Bind a socket that only this user may connect to. One that nobody listens on is replaced."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        if path.is_socket():
            probe.settimeout(1)
            probe.connect(str(path))
            raise SettingsError(f"a server listens on {path} already.")
    if path.is_socket():
        path.unlink()
    listening = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        listening.bind(str(path))
    finally:
        os.umask(before)
    return listening
