"""Guard: the five lines between a sandbox and the host, bounded and disconnected together.

The host parses ZMTP itself (``zmtp.py``). libzmq's own limits count whole messages (RCVHWM) and single frames
(MAXMSGSIZE), so an endless multipart message would pass both; and a message that passes another socket and another
thread costs the host half as much again.

The guard ends no kernel. It disconnects the wire, and ``Guard.reason`` says why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from orchestrator.kernel.endpoint import CHANNELS, Endpoint
from orchestrator.kernel.line import Line, Receive
from orchestrator.kernel.loopshare import KernelShare, LoopShare
from orchestrator.kernel.unixlistener import READ, UnixListener
from orchestrator.limits import MIB

__all__ = ["Guard", "Receive"]

# Seconds for what a kernel had sent when its wire was disconnected. A socket full of an honest one's text takes 0.005;
# full of the smallest messages it would hold the loop for half a second.
_FINAL_MESSAGES = 0.04
# Bytes of one message, where that is less than others may have: an unfinished one of each channel may be held at once.
# Pieces of files and of state, of 1 MiB, come on the control channel (one that is a little too large costs no kernel:
# its caller refuses it); questions on stdin; nothing on the last.
_BOUNDS = {"control": 4 * MIB, "stdin": MIB, "hb": 64 * 1024}


class Guard:
    """The five channels of one kernel.

    Attributes:
        lost: set once the wire is disconnected. The kernel's death always shows here first; whether it died only the
            engine can tell.
        reason: why it was disconnected; "" before.
        violated: whether the host disconnected it because of what the kernel sent.
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
        self._listeners: list[UnixListener] = []
        bounds = {channel: min(message_bound, _BOUNDS.get(channel, message_bound)) for channel in CHANNELS}
        self._lines = {channel: Line(channel, bound, self._share, self.disconnect) for channel, bound in bounds.items()}

    def listen(self, endpoint: Endpoint, receive: Receive) -> None:
        """Listen on a unix socket for each channel.

        Args:
            receive: called with the channel and the frames of each message.

        Raises:
            OSError: a socket could not be made.
        """
        buffer = bytearray(READ)
        for channel, line in self.lines(receive).items():
            self._listeners.append(UnixListener(endpoint.wire_path(channel), line, buffer))

    def lines(self, receive: Receive) -> Mapping[str, Line]:
        """Return the line of each channel, for a transport of another kind than a unix socket.

        Args:
            receive: see ``listen``.
        """
        for line in self._lines.values():
            line.receive_with(receive)
        return self._lines

    @property
    def connected(self) -> int:
        """How many channels the kernel has connected."""
        return sum(line.connected for line in self._lines.values())

    def send(self, channel: str, frames: Sequence[bytes]) -> None:
        """Send a message, once the kernel is ready for it; drop it when the wire is disconnected."""
        self._lines[channel].send(frames)

    def hold(self, channel: str, held: bool) -> None:
        """Read none of a channel's messages while ``held``, so that the kernel has to wait."""
        self._lines[channel].hold(held)

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` once the wire is disconnected, or at once when it is. Return what undoes this."""
        if self.lost.is_set():
            callback()
        else:
            self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    def disconnect(self, reason: str, violated: bool = False, excess: bool = False) -> None:
        """Disconnect all channels. Idempotent. What the kernel had sent is handed on first, unless it broke a rule."""
        try:
            if not violated:
                until = time.monotonic() + _FINAL_MESSAGES
                for channel in ("iopub", "shell"):
                    self._lines[channel].finish(until)
        finally:  # whatever a handler of those messages raises: those who wait for this kernel must be called
            self._end(reason, violated, excess)

    def _end(self, reason: str, violated: bool, excess: bool) -> None:
        if self.lost.is_set():
            return
        self.reason = reason
        self.violated = violated
        self.excess = excess
        self._share.close()
        self.lost.set()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for line in self._lines.values():
            line.close()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
