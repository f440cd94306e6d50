"""The splice between a sandbox and the clients of its kernel: every byte from a sandbox passes here first.

Per channel the guard listens twice, and joins one connection of the kernel with one of a client, byte for byte
(ZMTP is symmetric, so two dialling ends understand each other). What comes from the kernel is metered on the way:
libzmq's own limits count whole messages (RCVHWM) and single frames (MAXMSGSIZE), so an endless multipart message
would pass both.

The guard ends nothing itself. It cuts the wire, and says why through ``Guard.reason``.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.kernel.endpoint import CHANNELS, Endpoint
from orchestrator.kernel.loopshare import KernelShare, LoopShare
from orchestrator.kernel.meter import Meter, Violation

_READ = 64 * 1024  # bytes taken at once, of a frame's body or from a client
_HEADS = 2 * 1024  # bytes taken at once where heads of frames may come: full of two-byte ones it takes 1 ms to meter
_ACCEPT_AGAIN = 1.0  # seconds until a connection that could not be taken is tried again
_WINDOW = 2 * 1024 * 1024  # bytes of whole messages that may wait for the client in libzmq


class _End(asyncio.BufferedProtocol):
    """One of the two connections of a splice. Reads only while its peer is there and can take more."""

    peer: _End | None = None

    def __init__(self, splice: _Splice) -> None:
        self._splice = splice
        self._buffer = bytearray(_READ)
        self.transport: asyncio.Transport | None = None
        self._stops = {"alone"}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # Not at once: until Python 3.11.4 a transport begins to read after this call, paused or not.
        asyncio.get_running_loop().call_soon(self._hold)
        self._splice.joined(self)

    def _hold(self) -> None:
        if self._stops and self.transport is not None and self.transport.is_reading():
            self.transport.pause_reading()

    def get_buffer(self, sizehint: int) -> bytearray | memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.take(bytes(memoryview(self._buffer)[:nbytes]))

    def take(self, data: bytes) -> None:
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.write(data)

    def pause_writing(self) -> None:
        if self.peer is not None:
            self.peer.stop("peer is full")

    def resume_writing(self) -> None:
        if self.peer is not None:
            self.peer.go("peer is full")

    def stop(self, reason: str) -> None:
        self._stops.add(reason)
        if self.transport is not None and self.transport.is_reading():
            self.transport.pause_reading()

    def go(self, reason: str) -> None:
        self._stops.discard(reason)
        if not self._stops and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._splice.left(self)


class _KernelEnd(_End):
    """The sandbox's connection: metered, and stopped while too much waits for the client, or its share is spent."""

    def __init__(self, splice: _Splice, bound: int, window: int, share: KernelShare) -> None:
        super().__init__(splice)
        self._meter = Meter(bound)
        self._window = window
        self._share = share
        self._consumed = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)[: min(_READ, self._meter.missing + _HEADS)]

    def take(self, data: bytes) -> None:
        self._share.begin()
        try:
            self._meter.feed(data)
        except Violation as violation:
            self._splice.cut(str(violation), violated=True, excess=violation.excess)
            return
        super().take(data)
        self._weigh()
        if rest := self._share.end():
            self.stop("its share is spent")
            asyncio.get_running_loop().call_later(rest, self.go, "its share is spent")

    def consumed(self, size: int) -> None:
        self._consumed += size
        self._weigh()

    def _weigh(self) -> None:
        if self._meter.completed - self._consumed > self._window:
            self.stop("client is behind")
        elif "client is behind" in self._stops:
            self.go("client is behind")


class _Splice:
    """One channel: the kernel's connection and the client's."""

    def __init__(
        self,
        channel: str,
        kernel_end: Callable[[_Splice], _KernelEnd],
        on_lost: Callable[[str, bool, bool], None],
    ) -> None:
        self._channel = channel
        self._kernel_end = kernel_end
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._doors: dict[type[_End], socket.socket] = {}
        self._joining: set[asyncio.Task[Any]] = set()
        self._ends: dict[type[_End], _End] = {}
        self._closed = False

    def listen(self, endpoint: Endpoint) -> None:
        self._open(_KernelEnd, lambda: self._kernel_end(self), endpoint.wire_path(self._channel))
        _open_to_all(endpoint.wire_path(self._channel))
        self._open(_End, lambda: _End(self), endpoint.client_path(self._channel))

    def _open(self, kind: type[_End], make: Callable[[], _End], path: Path) -> None:
        """Listen for one connection.

        Not with an asyncio server: one that is closed between accepting a connection and making its transport leaves
        both to the garbage collector.
        """
        door = self._doors[kind] = socket.socket(socket.AF_UNIX)
        door.setblocking(False)
        door.bind(str(path))
        door.listen(1)
        self._watch(kind, make)

    def _watch(self, kind: type[_End], make: Callable[[], _End]) -> None:
        if kind in self._doors:
            self._loop.add_reader(self._doors[kind], self._admit, kind, make)

    def _admit(self, kind: type[_End], make: Callable[[], _End]) -> None:
        """Take a connection, and shut the door behind it: a sandbox cannot dial again and again."""
        try:
            connection, _ = self._doors[kind].accept()
        except (BlockingIOError, ConnectionError):  # it has hung up again
            return
        except OSError:  # this process has no descriptor left; whoever dials waits, and so does the loop not spin
            self._loop.remove_reader(self._doors[kind])
            self._loop.call_later(_ACCEPT_AGAIN, self._watch, kind, make)
            return
        self._shut(kind)
        joining = self._loop.create_task(self._loop.connect_accepted_socket(make, connection))
        self._joining.add(joining)
        joining.add_done_callback(self._joining.discard)

    def _shut(self, kind: type[_End]) -> None:
        if (door := self._doors.pop(kind, None)) is not None:
            self._loop.remove_reader(door)
            door.close()

    def joined(self, end: _End) -> None:
        if self._closed:
            self._abort(end)
            return
        self._ends[type(end)] = end
        if len(self._ends) == 2:
            kernel, client = self._ends[_KernelEnd], self._ends[_End]
            kernel.peer, client.peer = client, kernel
            kernel.go("alone")
            client.go("alone")

    def left(self, end: _End) -> None:
        if self._ends.get(type(end)) is end:
            self.cut(f"the {self._channel} connection closed")

    def cut(self, reason: str, *, violated: bool = False, excess: bool = False) -> None:
        if not self._closed:
            self.close()
            self._on_lost(reason, violated, excess)

    @property
    def dialled(self) -> bool:
        return _KernelEnd in self._ends

    def consumed(self, size: int) -> None:
        kernel = self._ends.get(_KernelEnd)
        if isinstance(kernel, _KernelEnd):
            kernel.consumed(size)

    def close(self) -> None:
        self._closed = True
        for kind in list(self._doors):
            self._shut(kind)
        for end in self._ends.values():
            self._abort(end)

    @staticmethod
    def _abort(end: _End) -> None:
        if end.transport is not None:
            end.transport.abort()


class Guard:
    """The five splices of one kernel.

    Attributes:
        lost: set once the wire is cut, whoever cut it. The kernel's death always shows here first; whether it died
            only the engine can tell.
        reason: why, in words; "" before.
        violated: whether the host cut it, because of what the kernel sent.
        excess: whether that was too much, and not malformed or forged.

    Args:
        message_bound: bytes that one message may weigh.
        share: this kernel's part of the event loop.
        window: bytes of whole messages that may wait for the client.
    """

    def __init__(self, message_bound: int, share: KernelShare | None = None, window: int = _WINDOW) -> None:
        self.lost = asyncio.Event()
        self.reason = ""
        self.violated = False
        self.excess = False
        self.share = own = share or LoopShare().of_kernel()
        self._callbacks: list[Callable[[], None]] = []

        def kernel_end(splice: _Splice) -> _KernelEnd:
            return _KernelEnd(splice, message_bound, window, own)

        self._splices = {channel: _Splice(channel, kernel_end, self.cut) for channel in CHANNELS}

    def listen(self, endpoint: Endpoint) -> None:
        """Listen on both sides of all channels.

        Raises:
            OSError: a socket could not be made.
        """
        for splice in self._splices.values():
            splice.listen(endpoint)

    @property
    def dialled(self) -> int:
        """How many channels the kernel has connected."""
        return sum(splice.dialled for splice in self._splices.values())

    def when_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called once the wire is cut; at once when it is. Returns what calls that off."""
        if self.lost.is_set():
            callback()
        else:
            self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    def consumed(self, channel: str, size: int) -> None:
        """Called by the client's side for each message it has taken: ``size``, as ``weigh`` says, no longer waits."""
        self._splices[channel].consumed(size)

    def cut(self, reason: str, violated: bool = False, excess: bool = False) -> None:
        """Cut the wire, unless it is cut."""
        if self.lost.is_set():
            return
        self.reason = reason
        self.violated = violated
        self.excess = excess
        self.share.close()
        self.lost.set()
        for splice in self._splices.values():
            splice.close()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def _open_to_all(path: Path) -> None:
    os.chmod(path, 0o666)  # noqa: S103 - the folder above it is closed; dialling a unix socket takes write permission
