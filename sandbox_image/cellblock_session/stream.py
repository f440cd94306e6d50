"""Move the bytes of a captured state between the main thread and the control thread, in bounded pieces.

A stream consists of sections. Each section is a sequence of pieces, each with its length in 4 bytes before its content,
and ends with an empty piece.
"""

import collections
import contextlib
import io
import struct
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any

PIECE = 1024 * 1024  # the most bytes of a piece
_LONGEST_WAIT = 60.0  # seconds that the main thread waits for the host, which may be gone
_WAIT = 0.1  # seconds that the control thread waits for the main thread; an interrupt may have to wait as long


class Pipe:
    """Passes bytes between the main thread, which may wait, and the control thread, which must not wait for long."""

    def __init__(self) -> None:
        self._pieces: collections.deque[bytes] = collections.deque()
        self._changed = threading.Condition()
        self._ended = False

    def put(self, piece: bytes) -> None:
        """Add a piece after the one before is taken. For the main thread.

        Raises:
            TimeoutError: nobody took the piece before for 60 s.
        """
        with self._changed:
            self._wait_long(lambda: not self._pieces or self._ended)
            self._pieces.append(piece)
            self._changed.notify_all()

    def get(self) -> bytes:
        """Take a piece, or b"" at the end. For the main thread.

        Raises:
            TimeoutError: none arrived for 60 s.
        """
        with self._changed:
            self._wait_long(lambda: bool(self._pieces) or self._ended)
            piece = self._pieces.popleft() if self._pieces else b""
            self._changed.notify_all()
            return piece

    def _wait_long(self, condition: Callable[[], bool]) -> None:
        if not self._changed.wait_for(condition, _LONGEST_WAIT):
            raise TimeoutError("the host does not respond")

    def offer(self, piece: bytes) -> bool:
        """Add a piece if there is room within 0.1 s, and return whether there was. For the control thread."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._pieces or self._ended, _WAIT):
                return False
            if not self._ended:
                self._pieces.append(piece)
                self._changed.notify_all()
            return True

    def poll(self) -> tuple[bytes | None, bool]:
        """Return a piece, or None if none arrives within 0.1 s, and whether the stream ends with it.

        For the control thread.
        """
        with self._changed:
            self._changed.wait_for(lambda: bool(self._pieces) or self._ended, _WAIT)
            piece = self._pieces.popleft() if self._pieces else None
            self._changed.notify_all()
            return piece, self._ended and not self._pieces

    def end(self) -> None:
        """Mark the end of the stream."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Sink:
    """Collects small writes into pieces for the pipe."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._parts: list[bytes] = []
        self._size = 0

    def __call__(self, data: bytes | memoryview) -> None:
        self._parts.append(bytes(data))
        self._size += len(data)
        if self._size >= PIECE:
            self.flush()

    def flush(self) -> None:
        data = b"".join(self._parts)
        for start in range(0, len(data), PIECE):
            self._pipe.put(data[start : start + PIECE])
        self._parts, self._size = [], 0


class Source:
    """Reads exactly as many bytes from the pipe as the caller asks for."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe, self._rest = pipe, memoryview(b"")

    def __call__(self, size: int) -> bytes:
        parts: list[memoryview] = []
        while size:
            if not self._rest:
                self._rest = memoryview(self._pipe.get())
                if not self._rest:
                    raise EOFError("the stream ended early")
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class SectionWriter(io.RawIOBase):
    """A file whose content becomes one section of the stream."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            self._sink(struct.pack(">I", len(piece)))
            self._sink(piece)
        return len(view)

    def finish(self) -> None:
        """Write the empty piece at the end of the section."""
        self._sink(struct.pack(">I", 0))


class SectionReader(io.RawIOBase):
    """A file whose content is one section of the stream."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = 0  # bytes left of the current piece
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            if self._ended:
                return 0
            (self._left,) = struct.unpack(">I", self._source(4))
            self._ended = self._left == 0
            if self._ended:
                return 0
        data = self._source(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def finish(self) -> None:
        """Skip the rest of the section."""
        while self.read(PIECE):
            pass


@contextlib.contextmanager
def reading(source: Source) -> Iterator[IO[bytes]]:
    """Yield a file with the content of the next section. Skips what the caller does not read."""
    section = SectionReader(source)
    file = io.BufferedReader(section, PIECE)
    yield file
    section.finish()


@contextlib.contextmanager
def writing(sink: Sink) -> Iterator[SectionWriter]:
    """Yield a file whose content becomes the next section."""
    section = SectionWriter(sink)
    yield section
    section.finish()
