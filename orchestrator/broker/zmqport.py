"""ZmqPort: one bound ZMQ socket on an asyncio event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import zmq

_AT_ONCE = 16  # messages that are read before the event loop goes on: a client may send without end
# Milliseconds. A client that was stopped, or that has not read for so long, is disconnected, and what waits for it is
# dropped: libzmq itself counts messages only.
_PING = 5_000
_PATIENCE = 15_000
_QUEUE = 10_000  # messages that may wait for one client; those beyond are dropped for this client alone
_LARGE = 4096  # bytes above which a message's memory is watched until all clients have it
_MOST_WAITING = 64 * 1024 * 1024  # bytes of such messages; only a client that does not read makes so many wait
_LONGEST = 64 * 1024 * 1024  # bytes of a client's message


class ZmqPort:
    """One socket that is bound, and is read a few messages at a time.

    Args:
        kind: such as ``zmq.ROUTER``.
        address: such as "tcp://127.0.0.1:5000".
        take: called with the frames of each message. Must not raise.
        connection: a connection file's content: its CurveZMQ keys, where it has them.

    Raises:
        zmq.ZMQError: the address cannot be bound.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        address: str,
        take: Callable[[list[bytes]], None],
        connection: Mapping[str, object],
    ) -> None:
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[zmq.MessageTracker, int]] = deque()
        self._waiting_bytes = 0
        self._again: asyncio.Handle | None = None
        self._socket = context.socket(kind)
        try:
            self._configure(kind, connection)
            self._socket.bind(address)
        except BaseException:
            self._socket.close(linger=0)
            raise
        self._loop.add_reader(self._socket.FD, self._read)
        self._read_soon()

    def _configure(self, kind: int, connection: Mapping[str, object]) -> None:
        socket = self._socket
        socket.sndhwm = _QUEUE
        socket.maxmsgsize = _LONGEST
        socket.heartbeat_ivl, socket.heartbeat_timeout = _PING, _PATIENCE
        if kind == zmq.ROUTER:
            socket.router_handover = 1  # a client that comes back under its identity takes its place
        elif kind == zmq.XPUB:
            socket.xpub_verbose = 1  # report also a subscription that another client has: each gets its welcome
        public, secret = connection.get("curve_publickey"), connection.get("curve_secretkey")
        if public and secret:
            socket.curve_server = True
            socket.curve_publickey, socket.curve_secretkey = _bytes(public), _bytes(secret)

    def send(self, frames: Sequence[bytes]) -> bool:
        """Send a message to the clients that it is for; one whose queue is full gets none.

        Returns:
            False if it was not sent: too much waits for clients that do not read.
        """
        size = sum(map(len, frames))
        if size > _LARGE and self._too_much_waits(size):
            return False
        try:
            if size > _LARGE:
                tracker = self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False, track=True)
                assert tracker is not None  # it was asked for
                self._waiting.append((tracker, size))
                self._waiting_bytes += size
            else:
                self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._read_soon()  # sending takes the one notice that there is something to read
        return True

    def _too_much_waits(self, size: int) -> bool:
        while self._waiting and self._waiting[0][0].done:
            self._waiting_bytes -= self._waiting.popleft()[1]
        return self._waiting_bytes > 0 and self._waiting_bytes + size > _MOST_WAITING

    def _read_soon(self) -> None:
        if self._again is None:
            self._again = self._loop.call_soon(self._read)

    def _read(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for _ in range(_AT_ONCE):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(frames)
        self._read_soon()

    def close(self) -> None:
        """Close the socket. What was sent just before still goes out, for a second."""
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._socket.FD)
        self._socket.close(linger=1000)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
