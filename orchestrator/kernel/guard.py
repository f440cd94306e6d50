"""The wire between a sandbox and the host: it listens for the kernel, and bounds whatever comes of it.

Per channel the guard listens on a unix socket and takes one connection. It speaks ZMTP itself (``zmtp.py``): libzmq's
own limits count whole messages (RCVHWM) and single frames (MAXMSGSIZE), so an endless multipart message would pass
both; and a message that passes another socket and another thread costs the host half as much again.

The guard ends nothing itself. It cuts the wire, and says why through ``Guard.reason``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.kernel import zmtp
from orchestrator.kernel.batch import Batch
from orchestrator.kernel.endpoint import CHANNELS, Endpoint
from orchestrator.kernel.loopshare import KernelShare, LoopShare

_READ = 256 * 1024  # bytes taken at once: all that a unix socket of Linux holds by default
_ACCEPT_AGAIN = 1.0  # seconds until a connection that could not be taken is tried again
# Seconds for what a kernel had sent when its wire was cut. A socket full of an honest one's text takes 0.005; full of
# the smallest messages it would hold the loop for half a second.
_FINAL_MESSAGES = 0.04
_IDENTITY = b"host"  # one for all channels: a kernel asks whoever sent the request for input
_TYPES = dict.fromkeys(CHANNELS, "DEALER") | {"iopub": "SUB"}
# Bytes of one message, where that is less than others may have: an unfinished one of each channel may be held at once.
# Pieces of files and of state, of 1 MiB, come on the control channel (one a little too large is for whoever asked to
# refuse, and costs no kernel); questions on stdin; nothing on the last.
_BOUNDS = {"control": 4 * 1024 * 1024, "stdin": 1024 * 1024, "hb": 64 * 1024}

Receive = Callable[[str, list[bytes]], None]


class _Line(asyncio.BufferedProtocol):
    """One channel: a listening socket, and then the one connection that it took."""

    def __init__(
        self,
        channel: str,
        parser: zmtp.Parser,
        share: KernelShare,
        buffer: bytearray,
        disconnect: Callable[[str, bool, bool], None],
    ) -> None:
        self._channel = channel
        self._parser = parser
        self._share = share
        self._buffer = buffer
        self._disconnect = disconnect
        self._loop = asyncio.get_running_loop()
        self._receive: Receive = _nobody
        self._listener: socket.socket | None = None
        self._joining: asyncio.Task[Any] | None = None
        self._connection: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self._turn: asyncio.TimerHandle | None = None
        self._early: list[Sequence[bytes]] | None = []  # what is sent before the kernel is ready for it
        self._batch: Batch | None = None
        self._held = False
        self._closed = False

    def listen(self, path: Path, receive: Receive) -> None:
        """Listen for one connection.

        Not with an asyncio server: one that is closed between accepting a connection and making its transport leaves
        both to the garbage collector.
        """
        self._receive = receive
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)
        self._listener.bind(str(path))
        os.chmod(path, 0o666)  # noqa: S103 - the folder above it is closed; dialling a unix socket takes write permission
        self._listener.listen(1)
        self._watch()

    def _watch(self) -> None:
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._admit)

    def _admit(self) -> None:
        """Take a connection, and shut the door behind it: a sandbox cannot dial again and again."""
        assert self._listener is not None
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):  # it has hung up again
            return
        except OSError:  # this process has no descriptor left; whoever dials waits, and so does the loop not spin
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_ACCEPT_AGAIN, self._watch)
            return
        connection.setblocking(False)
        self._shut()
        self._connection = connection
        self._joining = self._loop.create_task(self._loop.connect_accepted_socket(lambda: self, connection))

    def _shut(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._closed:
            transport.abort()
            return
        transport.write(zmtp.GREETING)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._parser.feed(memoryview(self._buffer)[:nbytes])
        if self._turn is None:
            self._work()

    def eof_received(self) -> None:
        """Not left to asyncio, which would first wait until all that was sent is taken."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed:
            self._disconnect(f"the {self._channel} connection closed", False, False)

    def send(self, frames: Sequence[bytes]) -> None:
        if self._early is not None:
            self._early.append(frames)
        elif self._transport is not None:
            self._transport.write(zmtp.encode(frames))

    def hold(self, held: bool) -> None:
        self._held = held
        if not held and self._turn is None:
            self._turn = self._loop.call_later(0, self._work)

    def finish(self, until: float) -> None:
        """Hand on what has been sent so far, as far as the socket holds it; whoever sends on is not followed.

        Args:
            until: monotonic seconds.
        """
        if self._closed or self._transport is None or self._connection is None:
            return
        with contextlib.suppress(OSError):
            self._parser.feed(memoryview(self._buffer)[: self._connection.recv_into(self._buffer)])
        while not self._closed and time.monotonic() < until and self._step():
            pass

    def close(self) -> None:
        self._closed = True
        self._shut()
        if self._turn is not None:
            self._turn.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._buffer = bytearray()  # a dead kernel's objects may wait long for the garbage collector
        self._parser.clear()
        self._batch = None

    def _work(self) -> None:
        """Hand on whole messages until there is none, or this kernel's share is spent, or the channel is held."""
        self._turn = None
        while not (self._closed or self._held):
            if rest := self._share.rest:
                self._turn = self._loop.call_later(rest, self._work)
                break
            self._share.begin()
            more = self._step()
            self._share.end()
            if not more:
                break
        self._read(self._turn is None and not self._held)

    def _step(self) -> bool:
        """Hand on the next message, if it is there."""
        frames = None if self._batch is None else self._batch.next()
        if frames is None:
            frames = self._next()
        if frames is None:
            return False
        self._receive(self._channel, frames)
        return True

    def _next(self) -> list[bytes] | None:
        self._batch = None
        try:
            frames = self._parser.next()
        except zmtp.Violation as violation:
            self.close()
            self._disconnect(str(violation), True, violation.excess)
            return None
        if self._early is not None and self._parser.ready:
            self._shake_hands()
        if frames is None or self._channel != "iopub" or len(frames) > 1 or not frames[0]:
            return frames
        self._batch = Batch(frames[0])
        return self._batch.next()

    def _shake_hands(self) -> None:
        assert self._transport is not None
        early, self._early = self._early or [], None
        self._transport.write(zmtp.ready(_TYPES[self._channel], _IDENTITY))
        for frames in ([zmtp.SUBSCRIBE_TO_ALL] if self._channel == "iopub" else []) + early:
            self.send(frames)

    def _read(self, reading: bool) -> None:
        """Let more come, or leave it in the socket, so that the kernel has to wait."""
        transport = self._transport
        if self._closed or transport is None or transport.is_reading() == reading:
            return
        if reading:
            transport.resume_reading()
        else:
            transport.pause_reading()


class Guard:
    """The five channels of one kernel.

    Attributes:
        lost: set once the wire is cut, whoever cut it. The kernel's death always shows here first; whether it died
            only the engine can tell.
        reason: why, in words; "" before.
        violated: whether the host cut it, because of what the kernel sent.
        excess: whether that was too much, and not malformed or forged.

    Args:
        message_bound: bytes that one message may weigh.
        share: this kernel's part of the event loop.
    """

    def __init__(self, message_bound: int, share: KernelShare | None = None) -> None:
        self.lost = asyncio.Event()
        self.reason = ""
        self.violated = False
        self.excess = False
        self._share = share or LoopShare().of_kernel()
        self._callbacks: list[Callable[[], None]] = []
        buffer = bytearray(_READ)  # one for all: what was read is taken out of it at once
        self._lines = {
            channel: _Line(
                channel,
                zmtp.Parser(min(message_bound, _BOUNDS.get(channel, message_bound))),
                self._share,
                buffer,
                self.disconnect,
            )
            for channel in CHANNELS
        }

    def listen(self, endpoint: Endpoint, receive: Receive) -> None:
        """Listen on all channels.

        Args:
            receive: called with the channel and the frames of each message that comes.

        Raises:
            OSError: a socket could not be made.
        """
        for channel, line in self._lines.items():
            line.listen(endpoint.wire_path(channel), receive)

    @property
    def connected(self) -> int:
        """How many channels the kernel has connected."""
        return sum(line.connected for line in self._lines.values())

    def send(self, channel: str, frames: Sequence[bytes]) -> None:
        """Send a message, once the kernel is ready for it; after the cut it goes nowhere."""
        self._lines[channel].send(frames)

    def hold(self, channel: str, held: bool) -> None:
        """Leave a channel's messages in its socket, so that the kernel has to wait; or take them again."""
        self._lines[channel].hold(held)

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have ``callback`` called once the wire is cut; at once when it is. Returns what calls that off."""
        if self.lost.is_set():
            callback()
        else:
            self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    def disconnect(self, reason: str, violated: bool = False, excess: bool = False) -> None:
        """Cut the wire, unless it is cut. What the kernel had sent before is handed on, unless it broke a rule."""
        try:
            if not violated:
                until = time.monotonic() + _FINAL_MESSAGES
                for channel in ("iopub", "shell"):
                    self._lines[channel].finish(until)
        finally:  # whatever a handler of those words raises: nobody may go on waiting for this kernel
            self._end(reason, violated, excess)

    def _end(self, reason: str, violated: bool, excess: bool) -> None:
        if self.lost.is_set():
            return
        self.reason = reason
        self.violated = violated
        self.excess = excess
        self._share.close()
        self.lost.set()
        for line in self._lines.values():
            line.close()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


def _nobody(_channel: str, _frames: list[bytes]) -> None:
    """Before ``listen`` there is no connection."""
