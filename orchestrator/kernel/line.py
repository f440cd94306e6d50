"""Line: one channel of a kernel's wire, whatever transport its bytes come over.

It parses ZMTP, bounds every message, takes its turns of the event loop, and hands whole messages on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.kernel import zmtp
from orchestrator.kernel.batch import Batch
from orchestrator.kernel.endpoint import CHANNELS
from orchestrator.kernel.loopshare import KernelShare

_IDENTITY = b"host"  # one for all channels: a kernel asks the sender of the request for input
_TYPES = dict.fromkeys(CHANNELS, "DEALER") | {"iopub": "SUB"}

Receive = Callable[[str, list[bytes]], None]


class Disconnect(Protocol):
    """Called when a line breaks a rule or loses its connection: ``Guard.disconnect``."""

    def __call__(self, reason: str, violated: bool = False, excess: bool = False) -> None: ...


class LineTransport(Protocol):
    """What carries a line's bytes: a connection of a unix socket, or anything else that is an ordered stream."""

    def write(self, data: bytes) -> None:
        """Send bytes, or buffer them."""

    def pause_reading(self) -> None:
        """Call ``Line.feed`` no more, so that the kernel has to wait. Idempotent."""

    def resume_reading(self) -> None:
        """Undo ``pause_reading``. Idempotent."""

    def take_rest(self) -> bytes | memoryview:
        """Return what has arrived and was not fed yet, as far as the transport holds it. Called before ``abort``."""

    def abort(self) -> None:
        """Close at once, without sending what is buffered."""


class Line:
    """One channel.

    Args:
        channel: "shell", "iopub", "stdin", "control" or "hb".
        bound: bytes that one message may weigh.
        share: the kernel's part of the event loop.
    """

    def __init__(self, channel: str, bound: int, share: KernelShare, disconnect: Disconnect) -> None:
        self._channel = channel
        self._parser = zmtp.Parser(bound)
        self._share = share
        self._disconnect = disconnect
        self._loop = asyncio.get_running_loop()
        self._receive: Receive = _drop
        self._transport: LineTransport | None = None
        self._turn: asyncio.TimerHandle | None = None
        self._early: list[Sequence[bytes]] | None = []  # what is sent before the kernel is ready for it
        self._batch: Batch | None = None
        self._held = self._paused = self._closed = False

    def receive_with(self, receive: Receive) -> None:
        """Hand each message to ``receive`` from now on."""
        self._receive = receive

    @property
    def connected(self) -> bool:
        """Whether it has, or had, a transport."""
        return self._transport is not None

    # Called by the transport

    def begin(self, transport: LineTransport) -> None:
        """Use this transport. Called once, when the kernel has connected."""
        self._transport = transport
        if self._closed:
            transport.abort()
        else:
            transport.write(zmtp.GREETING)

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes of the kernel. They are copied."""
        self._parser.feed(data)
        if self._turn is None:
            self._work()

    def lose(self) -> None:
        """Note that the connection was closed, or failed."""
        if not self._closed:
            self._disconnect(f"the {self._channel} connection closed")

    # Called by the guard

    def send(self, frames: Sequence[bytes]) -> None:
        """Send a message, once the kernel is ready for it; after ``close`` drop it."""
        if self._early is not None:
            self._early.append(frames)
        elif self._transport is not None:
            self._transport.write(zmtp.encode(frames))

    def hold(self, held: bool) -> None:
        """Read no messages while ``held``, so that the kernel has to wait."""
        self._held = held
        if not held and self._turn is None:
            self._turn = self._loop.call_later(0, self._work)

    def finish(self, until: float) -> None:
        """Hand on what has arrived so far, as far as the transport holds it. What the kernel still sends is not read.

        Args:
            until: monotonic seconds after which nothing more is handed on.
        """
        if self._closed or self._transport is None:
            return
        self._parser.feed(self._transport.take_rest())
        while not self._closed and time.monotonic() < until and self._step():
            pass

    def close(self) -> None:
        """Abort the connection and drop what was not handed on. Idempotent."""
        self._closed = True
        if self._turn is not None:
            self._turn.cancel()
        if self._transport is not None:
            self._transport.abort()
        self._parser.clear()
        self._batch = None

    # How

    def _work(self) -> None:
        """Hand on messages until there is none, or the kernel's share of the loop is spent, or the line is held."""
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
        self._pause(self._turn is not None or self._held)

    def _step(self) -> bool:
        """Hand on the next message; return whether there was one."""
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

    def _pause(self, paused: bool) -> None:
        if self._closed or self._transport is None or self._paused == paused:
            return
        self._paused = paused
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()


def _drop(_channel: str, _frames: list[bytes]) -> None:
    """Stands in until ``receive_with``."""
