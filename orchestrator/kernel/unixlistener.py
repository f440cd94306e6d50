"""UnixListener: accepts the one connection of a line on a unix socket, and carries its bytes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from orchestrator.kernel.line import Line

READ = 256 * 1024  # bytes taken at once: all that a unix socket of Linux holds by default
_ACCEPT_AGAIN = 1.0  # seconds until a connection that could not be accepted is tried again


class UnixListener:
    """A listening socket. It is closed behind the first connection, so that a sandbox cannot connect again and again.

    It is no asyncio server: one that is closed between accepting a connection and making its transport leaves both to
    the garbage collector.

    Args:
        path: of the socket.
        line: gets the connection.
        buffer: for reading; several listeners may share one, since ``Line.feed`` copies.

    Raises:
        OSError: the socket cannot be made.
    """

    def __init__(self, path: Path, line: Line, buffer: bytearray) -> None:
        self._line = line
        self._buffer = buffer
        self._loop = asyncio.get_running_loop()
        self._joining: asyncio.Task[Any] | None = None
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX)
        try:
            self._socket.setblocking(False)
            self._socket.bind(str(path))
            os.chmod(path, 0o666)  # noqa: S103 - the folder above is closed; to connect takes permission to write
            self._socket.listen(1)
        except OSError:
            self._socket.close()
            raise
        self._watch()

    def close(self) -> None:
        """Listen no more. A connection that was accepted is the line's to close. Idempotent."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _watch(self) -> None:
        if self._socket is not None:
            self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        assert self._socket is not None
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):  # it has closed again
            return
        except OSError:  # this process has no descriptor left: the kernel waits, and the loop must not spin meanwhile
            self._loop.remove_reader(self._socket)
            self._loop.call_later(_ACCEPT_AGAIN, self._watch)
            return
        connection.setblocking(False)
        self.close()
        protocol = _UnixConnection(connection, self._line, self._buffer)
        self._joining = self._loop.create_task(self._loop.connect_accepted_socket(lambda: protocol, connection))


class _UnixConnection(asyncio.BufferedProtocol):
    """The connection that a listener accepted: a ``LineTransport``."""

    def __init__(self, connection: socket.socket, line: Line, buffer: bytearray) -> None:
        self._connection = connection
        self._line = line
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._line.begin(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._line.feed(memoryview(self._buffer)[:nbytes])

    def eof_received(self) -> None:
        """Abort. asyncio would first wait until the kernel has taken all that was sent."""
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._line.lose()

    # Called by the line

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def pause_reading(self) -> None:
        assert self._transport is not None
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        assert self._transport is not None
        self._transport.resume_reading()

    def take_rest(self) -> memoryview:
        size = 0
        with contextlib.suppress(OSError):
            size = self._connection.recv_into(self._buffer)
        return memoryview(self._buffer)[:size]

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()
        self._buffer = bytearray()  # a dead kernel's objects may wait long for the garbage collector
