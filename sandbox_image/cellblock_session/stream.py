"""The bytes of a captured state on their way between the main thread and the control thread, in bounded pieces.

A stream has sections, each a run of pieces (length in 4 bytes, content) that ends with an empty one.
"""

import collections
import contextlib
import io
import struct
import threading

PIECE = 1024 * 1024  # bytes that travel at once
_LONGEST_WAIT = 60.0  # seconds that the main thread waits for a host that may have gone
_WAIT = 0.1  # seconds that the control thread waits for the main thread: an interrupt has to wait as long


class Pipe:
    """Bytes between the main thread, which waits, and the control thread, which must not for long."""

    def __init__(self):
        self._pieces = collections.deque()
        self._changed = threading.Condition()
        self._ended = False

    def put(self, piece):
        """Add a piece, once the one before is taken. In the main thread."""
        with self._changed:
            self._wait_long(lambda: not self._pieces or self._ended)
            self._pieces.append(piece)
            self._changed.notify_all()

    def get(self):
        """Take a piece; b"" at the end. In the main thread."""
        with self._changed:
            self._wait_long(lambda: self._pieces or self._ended)
            piece = self._pieces.popleft() if self._pieces else b""
            self._changed.notify_all()
            return piece

    def _wait_long(self, condition):
        if not self._changed.wait_for(condition, _LONGEST_WAIT):
            raise TimeoutError("the host has gone away")

    def offer(self, piece):
        """Add a piece, if there is room soon. Returns whether there was."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._pieces or self._ended, _WAIT):
                return False
            if not self._ended:
                self._pieces.append(piece)
                self._changed.notify_all()
            return True

    def poll(self):
        """Return (a piece or None, whether that was the last)."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended, _WAIT)
            piece = self._pieces.popleft() if self._pieces else None
            self._changed.notify_all()
            return piece, self._ended and not self._pieces

    def end(self):
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Section(io.RawIOBase):
    """A file whose content is one section of the stream: written, or read."""

    def __init__(self, sink=None, source=None):
        self._sink, self._source = sink, source
        self._left = None

    def writable(self):
        return self._sink is not None

    def readable(self):
        return self._source is not None

    def write(self, data):
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            self._sink(struct.pack(">I", len(piece)))
            self._sink(piece)
        return len(view)

    def finish(self):
        if self._sink is not None:
            self._sink(struct.pack(">I", 0))
        else:
            while self.read(PIECE):
                pass

    def readinto(self, buffer):
        if not self._left:
            if self._left == 0 and self._ended:
                return 0
            (self._left,) = struct.unpack(">I", self._source(4))
            self._ended = self._left == 0
            if self._ended:
                return 0
        data = self._source(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    _ended = False


class Sink:
    """Collects small writes into pieces for the pipe."""

    def __init__(self, pipe):
        self._pipe, self._parts, self._size = pipe, [], 0

    def __call__(self, data):
        self._parts.append(bytes(data))
        self._size += len(data)
        if self._size >= PIECE:
            self.flush()

    def flush(self):
        data = b"".join(self._parts)
        for start in range(0, len(data), PIECE):
            self._pipe.put(data[start : start + PIECE])
        self._parts, self._size = [], 0


class Source:
    """Reads exactly as many bytes as are asked for."""

    def __init__(self, pipe):
        self._pipe, self._rest = pipe, memoryview(b"")

    def __call__(self, size):
        parts = []
        while size:
            if not self._rest:
                self._rest = memoryview(self._pipe.get())
                if not self._rest:
                    raise EOFError("the stream ended early")
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


@contextlib.contextmanager
def reading(source):
    """Yield a file of the next section's content; what is not read of it is skipped."""
    section = Section(source=source)
    file = io.BufferedReader(section, PIECE)
    yield file
    section.finish()


@contextlib.contextmanager
def writing(sink):
    """Yield a file whose content becomes the next section."""
    section = Section(sink=sink)
    yield section
    section.finish()
