"""ZmtpServer: one socket of a broker that speaks ZMTP, as a bound ZMQ socket does, without libzmq.

libzmq counts the messages that wait for a client, and not their bytes; it cannot disconnect one client; and its
heartbeat, which would, ends the process when a subscriber is slow (libzmq #4364, #4767; seen here).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from orchestrator.kernel import zmtp

SocketType = Literal["ROUTER", "XPUB"]
_MOST_PEERS = 128  # connections of one socket; those beyond are refused
_STRANGERS_BOUND = 1024 * 1024  # bytes of a message of a peer that has not shown that it has the key
_BOUND = 64 * 1024 * 1024  # bytes of any other
_MOST_WAITING = 32 * 1024 * 1024  # bytes that may wait for a peer that does not read; it is disconnected then
_ALL_WAITING = 128 * 1024 * 1024  # bytes that may wait for all peers of a socket; those that are behind share them
_BEHIND = 1024 * 1024  # bytes that wait for a peer that is behind
_AT_ONCE = 16  # messages of one peer that are taken before the event loop goes on
_ACCEPT_AGAIN = 1.0  # seconds until a connection that could not be accepted is tried again


class Peer(asyncio.Protocol):
    """One connection of a client.

    Attributes:
        identity: the routing identity that it names; its own socket's, where it names none.
        topics: what it subscribes to.
        rejected: how many of its messages were malformed.
    """

    def __init__(self, server: ZmtpServer) -> None:
        self.identity = b""
        self.topics: list[bytes] = []
        self.rejected = 0
        self._server = server
        self._parser = zmtp.Parser(_STRANGERS_BOUND)
        self._transport: asyncio.Transport | None = None
        self._turn: asyncio.Handle | None = None
        self._outgoing: list[bytes] = []  # what this turn of the event loop sends, in one piece
        self._outgoing_bytes = 0
        self._greeted = False

    def trust(self) -> None:
        """Let it send larger messages: it has shown that it has the key."""
        self._parser.bound = _BOUND

    def send(self, frames: Sequence[bytes]) -> None:
        """Send a message; disconnect a peer for which too much waits already."""
        self.write(zmtp.encode(frames))

    def write(self, data: bytes) -> None:
        """Send a message that is encoded already."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._waits_too_long():
            self.disconnect()
            return
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(data)
        self._outgoing_bytes += len(data)

    @property
    def waiting(self) -> int:
        """How many bytes wait until it reads."""
        kept = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return kept + self._outgoing_bytes

    def _waits_too_long(self) -> bool:
        waiting = self.waiting
        return waiting > _MOST_WAITING or (waiting > _BEHIND and self._server.waiting > _ALL_WAITING)

    def _flush(self) -> None:
        outgoing, self._outgoing, self._outgoing_bytes = self._outgoing, [], 0
        if outgoing and self._transport is not None and not self._transport.is_closing():
            self._transport.write(outgoing[0] if len(outgoing) == 1 else b"".join(outgoing))

    def disconnect(self) -> None:
        """Close the connection at once. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close the connection once what was sent has gone out."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    # Called by asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(zmtp.GREETING)

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        if self._turn is None:
            self._work()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._turn is not None:
            self._turn.cancel()
        self._parser.clear()
        self._server.left(self)

    # How

    def _work(self) -> None:
        """Take messages: a few, then the others of the event loop have their turn."""
        self._turn = None
        assert self._transport is not None
        for _ in range(_AT_ONCE):
            if self._transport.is_closing():
                return
            try:
                frames = self._parser.next()
            except zmtp.Violation:
                self.disconnect()
                return
            if not self._greeted and self._parser.ready:
                self._greet()
            if frames is None:
                self._transport.resume_reading()
                return
            self._server.take(self, frames)
        self._transport.pause_reading()
        self._turn = asyncio.get_running_loop().call_soon(self._work)

    def _greet(self) -> None:
        self._greeted = True
        self.identity = zmtp.properties(self._parser.handshake).get(b"identity", b"") or os.urandom(8)
        self.write(zmtp.ready(self._server.kind))
        self._server.greeted(self)


class ZmtpServer:
    """A socket that clients connect to.

    Args:
        kind: what it says that it is.
        address: the path of a unix socket, or a host and a port.
        take: called with each message of a peer. Must not raise.
        greeted: called when a peer has named its identity. It has not shown that it has the key.
        gone: called when a peer has disconnected.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self,
        kind: SocketType,
        address: Path | tuple[str, int],
        take: Callable[[Peer, list[bytes]], None],
        greeted: Callable[[Peer], None] = lambda _peer: None,
        gone: Callable[[Peer], None] = lambda _peer: None,
    ) -> None:
        self.kind: SocketType = kind
        self.take = take
        self.peers: set[Peer] = set()
        self._left = asyncio.Event()
        self.greeted = greeted
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._joining: set[asyncio.Task[Any]] = set()
        self._path = address if isinstance(address, Path) else None
        self._socket = _bound(address)
        self._watch()

    def abandon(self) -> None:
        """Listen no more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Listen no more, and close all connections: what was sent still goes out, within a second."""
        self.abandon()
        for task in list(self._joining):
            with contextlib.suppress(OSError):
                await task
        for peer in list(self.peers):
            peer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                while self.peers:
                    self._left.clear()
                    await self._left.wait()
        for peer in list(self.peers):
            peer.disconnect()
        await asyncio.sleep(0)

    # Called by its peers

    @property
    def waiting(self) -> int:
        """How many bytes wait for all of its peers."""
        return sum(peer.waiting for peer in self.peers)

    def left(self, peer: Peer) -> None:
        """Remove a peer."""
        self.peers.discard(peer)
        self._left.set()
        self._gone(peer)

    # How

    def _watch(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionError):  # it has closed again
            return
        except OSError:  # this process has no descriptor left: the loop must not spin meanwhile
            self._loop.remove_reader(self._socket)
            self._loop.call_later(_ACCEPT_AGAIN, self._watch)
            return
        if len(self.peers) >= _MOST_PEERS:
            connection.close()
            return
        connection.setblocking(False)
        if self._path is None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(self)
        self.peers.add(peer)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: peer, connection))
        self._joining.add(task)
        task.add_done_callback(partial(self._joined, peer))

    def _joined(self, peer: Peer, task: asyncio.Task[Any]) -> None:
        self._joining.discard(task)
        if task.cancelled() or task.exception() is not None:  # it has closed again
            self.peers.discard(peer)


def _bound(address: Path | tuple[str, int]) -> socket.socket:
    if not isinstance(address, Path):
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        bound = socket.create_server(address, family=family)
        bound.setblocking(False)
        return bound
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(address.lstat().st_mode):  # a dead process's
            address.unlink()
    bound = socket.socket(socket.AF_UNIX)
    try:
        bound.setblocking(False)
        bound.bind(str(address))
        address.chmod(0o600)
        bound.listen(64)
    except OSError:
        bound.close()
        raise
    return bound
