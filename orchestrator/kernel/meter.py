"""Follows a ZMTP 3 stream without keeping any of it, and bounds its messages. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_GREETING = 64  # bytes, ZMTP 3.x
_SIGNATURE_START, _SIGNATURE_END, _MAJOR = 0xFF, 0x7F, 3
_MECHANISM = b"NULL".ljust(20, b"\0")
_MORE, _LONG, _COMMAND = 0x01, 0x02, 0x04
_LONG_HEAD = 9  # bytes: flags and a length of eight
_COMMAND_BOUND = 8192  # bytes; READY carries the socket type and an identity, nothing else is sent over NULL
FRAME_COST = 64  # bytes that a frame takes in libzmq beside its body; an empty one is not free
_FRAMES_BOUND = 64  # per message; Jupyter's have six or seven, file transfers one more


class Violation(Exception):
    """The kernel broke the protocol, or with ``excess`` the bounds of what it may send."""

    def __init__(self, reason: str, *, excess: bool = False) -> None:
        super().__init__(reason)
        self.excess = excess


class Meter:
    """Follows a ZMTP 3 stream without keeping it, and bounds its messages.

    Args:
        bound: what one message may weigh: the bytes of its frames, and ``FRAME_COST`` for each.
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._head = bytearray()
        self._expected = _GREETING
        self._greeted = False
        self._body = 0
        self._flags = 0
        self._message = 0
        self._frames = 0
        self._ready = False
        self.completed = 0  # weight of all whole messages so far, as ``weigh`` has it

    @property
    def missing(self) -> int:
        """Bytes of the frame that has begun which are still to come; they cost no time."""
        return self._body

    def feed(self, data: bytes) -> None:
        """Count ``data``.

        Raises:
            Violation: it is not ZMTP 3 with the NULL mechanism, or a message exceeds its bounds.
        """
        position, end = 0, len(data)
        while position < end:
            if self._body:
                step = min(self._body, end - position)
                self._body -= step
                position += step
                if not self._body:
                    self._close_frame()
            elif self._head or not self._greeted or end - position < _LONG_HEAD:
                step = min(self._expected - len(self._head), end - position)
                self._head += data[position : position + step]
                position += step
                if len(self._head) == self._expected:
                    self._read_head()
            else:  # a whole head lies here: the quick way, since a flood is of little else
                flags = data[position]
                if flags > _MORE | _LONG | _COMMAND:
                    raise Violation("a frame has unknown flags")
                size = 9 if flags & _LONG else 2
                self._flags = flags
                self._body = (
                    data[position + 1] if size == 2 else int.from_bytes(data[position + 1 : position + 9], "big")
                )
                position += size
                self._open_frame()

    def _read_head(self) -> None:
        if not self._greeted:
            self._check_greeting()
            return
        if self._expected == 1:
            self._flags = self._head[0]
            if self._flags > _MORE | _LONG | _COMMAND:
                raise Violation("a frame has unknown flags")
            self._expected = 9 if self._flags & _LONG else 2
            return
        self._body = int.from_bytes(self._head[1:], "big")
        self._next_head()
        self._open_frame()

    def _check_greeting(self) -> None:
        head = self._head
        genuine = head[0] == _SIGNATURE_START and head[9] == _SIGNATURE_END and head[10] == _MAJOR
        if not genuine or head[12:32] != _MECHANISM:
            raise Violation("the peer does not greet as ZMTP 3 with the NULL mechanism")
        self._greeted = True
        self._next_head()

    def _next_head(self) -> None:
        self._head.clear()
        self._expected = 1

    def _open_frame(self) -> None:
        if self._flags & _COMMAND:
            # READY is the one command of an honest kernel. Others reach the client's socket uncounted, or are echoed.
            if self._ready or self._body > _COMMAND_BOUND:
                raise Violation("a command that is not the handshake's")
            self._ready = True
        else:
            self._message += self._body + FRAME_COST
            self._frames += 1
            if self._message > self._bound:
                raise Violation(f"a message exceeds {self._bound} bytes", excess=True)
            if self._frames > _FRAMES_BOUND:
                raise Violation(f"a message has more than {_FRAMES_BOUND} frames", excess=True)
        if not self._body:
            self._close_frame()

    def _close_frame(self) -> None:
        if self._flags & (_COMMAND | _MORE):
            return
        self.completed += self._message
        self._message = 0
        self._frames = 0


def weigh(frames: Sequence[bytes]) -> int:
    """Return what a received message weighs: the same that the meter counted for it."""
    return sum(map(len, frames)) + FRAME_COST * len(frames)
