"""The host's end of ZMTP 3.0 with the NULL mechanism, so that no C code parses a sandbox's bytes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_SIGNATURE_START, _SIGNATURE_END, _MAJOR = 0xFF, 0x7F, 3
_MECHANISM = b"NULL".ljust(20, b"\0")
# Version 3.0 and not 3.1: there a subscription is an ordinary message, and no command comes after READY.
GREETING = bytes([_SIGNATURE_START, *bytes(8), _SIGNATURE_END, _MAJOR, 0]) + _MECHANISM + bytes(32)
SUBSCRIBE_TO_ALL = [b"\x01"]
_MORE, _LONG, _COMMAND = 0x01, 0x02, 0x04
_SHORT_HEAD, _LONG_HEAD = 2, 9  # bytes: flags, and a length of one or of eight
_SHORT_MOST = 255  # bytes that a short frame can have
_COMMAND_BOUND = 8192  # bytes; READY carries the socket type and an identity
_FRAME_COST = 64  # bytes that a frame takes in memory beside its body; an empty one is not free
FRAMES_BOUND = 64  # per message; Jupyter's have six or seven, file transfers one more


class Violation(Exception):
    """The kernel broke the protocol, or with ``excess`` exceeded a bound."""

    def __init__(self, reason: str, *, excess: bool = False) -> None:
        super().__init__(reason)
        self.excess = excess


class Parser:
    """Parses what a peer sends: ``feed`` takes bytes as they come, ``next`` returns one whole message at a time.

    A call of ``next`` does the work of at most one message, however much was fed, so the caller can pause between two.

    Attributes:
        ready: whether the peer has completed its handshake.
        handshake: the READY command that completed it.
        bound: what one message may weigh from now on.

    Args:
        bound: what one message may weigh: the bytes of its frames, and 64 for each frame.
    """

    def __init__(self, bound: int) -> None:
        self.ready = False
        self.handshake = b""
        self.bound = bound
        self._greeted = False
        self._buffer = bytearray()
        self._at = 0
        self._frames: list[bytes] = []
        self._weight = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes. They are copied."""
        del self._buffer[: self._at]
        self._at = 0
        self._buffer += data

    def next(self) -> list[bytes] | None:
        """Return the frames of the next whole message; None until more is fed.

        Raises:
            Violation: it is not ZMTP 3 with the NULL mechanism, or a message exceeds a bound. The announced size of a
                frame decides, before its bytes have arrived.
        """
        if self._at == len(self._buffer):
            self.clear()  # free the buffer of a large message
        if not self._greeted and not self._greet():
            return None
        while (head := self._head()) is not None:
            flags, size, start = head
            self._check(flags, size)
            end = start + size
            if end > len(self._buffer):
                return None
            self._at = end
            if flags & _COMMAND:
                self.ready = True
                self.handshake = bytes(self._buffer[start:end])
                continue
            with memoryview(self._buffer) as view:
                self._frames.append(bytes(view[start:end]))
            self._weight += size + _FRAME_COST
            if not flags & _MORE:
                frames, self._frames, self._weight = self._frames, [], 0
                return frames
        return None

    def clear(self) -> None:
        """Drop what was fed and is not parsed yet."""
        self._buffer, self._at = bytearray(), 0

    def _greet(self) -> bool:
        if len(self._buffer) < len(GREETING):
            return False
        head = self._buffer
        genuine = head[0] == _SIGNATURE_START and head[9] == _SIGNATURE_END and head[10] == _MAJOR
        if not genuine or head[12:32] != _MECHANISM:
            raise Violation("the peer does not greet as ZMTP 3 with the NULL mechanism")
        self._at = len(GREETING)
        self._greeted = True
        return True

    def _head(self) -> tuple[int, int, int] | None:
        """Return the flags and length of the next frame, and where its body begins; None until they have arrived."""
        buffer, at = self._buffer, self._at
        present = len(buffer) - at
        if present < 1:
            return None
        flags = buffer[at]
        if flags > _MORE | _LONG | _COMMAND:
            raise Violation("a frame has unknown flags")
        if flags & _LONG:
            if present < _LONG_HEAD:
                return None
            return flags, int.from_bytes(buffer[at + 1 : at + _LONG_HEAD], "big"), at + _LONG_HEAD
        if present < _SHORT_HEAD:
            return None
        return flags, buffer[at + 1], at + _SHORT_HEAD

    def _check(self, flags: int, size: int) -> None:
        if bool(flags & _COMMAND) == self.ready or (flags & _COMMAND and size > _COMMAND_BOUND):
            raise Violation("a command that is not the handshake's" if flags & _COMMAND else "no handshake")
        if self._weight + size + _FRAME_COST > self.bound:
            raise Violation(f"a message exceeds {self.bound} bytes", excess=True)
        if len(self._frames) == FRAMES_BOUND:
            raise Violation(f"a message has more than {FRAMES_BOUND} frames", excess=True)


def ready(socket_type: str, identity: bytes = b"") -> bytes:
    """Return the READY command of a socket of that type."""
    properties = {b"Socket-Type": socket_type.encode()} | ({b"Identity": identity} if identity else {})
    body = b"\x05READY" + b"".join(
        bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value for name, value in properties.items()
    )
    return bytes([_COMMAND, len(body)]) + body


def properties(handshake: bytes) -> dict[bytes, bytes]:
    """Return the properties of a READY command, by their names in lower case. A malformed rest is left out."""
    found: dict[bytes, bytes] = {}
    at = 1 + handshake[0] if handshake else 0
    while at < len(handshake):
        name_end = at + 1 + handshake[at]
        start = name_end + 4
        end = start + int.from_bytes(handshake[name_end:start], "big")
        if end > len(handshake):
            break
        found[handshake[at + 1 : name_end].lower()] = handshake[start:end]
        at = end
    return found


def encode(frames: Sequence[bytes]) -> bytes:
    """Return the bytes of a message."""
    parts: list[bytes] = []
    for left, frame in enumerate(frames, 1 - len(frames)):
        flags, size = _MORE if left else 0, len(frame)
        if size <= _SHORT_MOST:
            parts += bytes([flags, size]), frame
        else:
            parts += bytes([flags | _LONG]) + size.to_bytes(8, "big"), frame
    return b"".join(parts)
