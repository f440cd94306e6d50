"""stdout and stderr of cells and their child processes, in the order of writing."""

import codecs
import contextlib
import fcntl
import io
import os
import select
import threading
from collections.abc import Iterator
from typing import Any

from ipykernel.iostream import OutStream

from cellblock_kernel.messages import pack_text
from cellblock_kernel.originals import BUILTINS
from cellblock_kernel.publisher import FRAME, Publisher

__builtins__ = BUILTINS

# The most characters of one stream message. A single long print then stays far below the host's message limit, and
# IOPUB_HIGH_WATER messages, which an interrupted cell still has to send, are sent soon. Text beyond ASCII takes up to
# four times as much memory on the host, and control characters six times.
STREAM_PIECE = 256 * 1024
WIDE_PIECE = 64 * 1024
# Buffered characters above which a cell that prints faster than the host reads has to wait.
STREAM_BUFFER = 1024 * 1024
# Characters that each message counts for on top of its text: a thousand short lines that alternate between the two
# streams fill the buffer too.
PIECE_COST = 1024
# Characters that threads, tasks and child processes may write between two cells. The next result has them.
HELD = 64 * 1024


UNUSUAL = tuple(chr(code) for code in range(32) if chr(code) not in "\n\r\t")


class Outbox:
    """Text that both streams have accepted and not sent yet, in the order of writing.

    ipykernel has one buffer for each stream, so a line on stderr between two lines on stdout arrives after both.
    """

    def __init__(self) -> None:
        self._empty()
        # What waits is the parent's to send, and a thread of the parent may hold the lock.
        os.register_at_fork(after_in_child=self._empty)

    def _empty(self) -> None:
        self._lock = threading.RLock()
        self.turn = threading.RLock()  # hold it to take and publish what waits
        self._pieces: list[tuple[OrderedStream, list[str]]] = []
        self.size = self._taken = 0
        self.holds = False  # no cell runs: what is written waits for the next one
        self._left_out = 0  # characters

    def put(self, stream: "OrderedStream", text: str) -> None:
        with self._lock:
            if self.holds and self.size + len(text) > HELD:
                self._left_out += len(text)
                return
            if not self._pieces or self._pieces[-1][0] is not stream:
                self._pieces.append((stream, []))
                self.size += PIECE_COST
            self._pieces[-1][1].append(text)
            self.size += len(text)

    def release(self, stream: "OrderedStream") -> None:
        """Let what was written between two cells be sent. ``stream`` says how much of it was left out."""
        with self._lock:
            self.holds, left_out, self._left_out = False, self._left_out, 0
            if left_out:
                self.put(stream, f"\n[... {left_out} characters between two cells left out ...]\n")

    def take(self) -> "tuple[list[tuple[OrderedStream, str]], int]":
        """Return (stream, text) for all that waits, and its size. ``sent`` subtracts that size."""
        with self._lock:
            pieces = [(stream, "".join(texts)) for stream, texts in self._pieces]
            self._pieces, size = [], self.size - self._taken
            self._taken += size
        return pieces, size

    def put_back(self, pieces: "list[tuple[OrderedStream, str]]") -> None:
        """Let what was taken and could not be sent wait again. The last of ``pieces`` is the first to be sent."""
        with self._lock:
            self._pieces[:0] = [(stream, [text]) for stream, text in reversed(pieces)]
            self.size += sum(PIECE_COST + len(text) for _, text in pieces)

    def sent(self, size: int) -> None:
        with self._lock:
            self.size -= size
            self._taken -= size


def is_plain(text: str) -> bool:
    """Return whether the text as JSON is at most twice as long."""
    # Thirty quick searches take a third of the time of one pass that removes the characters.
    return text.isascii() and all(mark not in text for mark in UNUSUAL)


class OrderedStream(OutStream):
    """stdout or stderr. Both use one outbox."""

    pub_thread: Publisher
    _fid: Any
    _outbox = Outbox()
    both: "list[OrderedStream]" = []  # noqa: RUF012 - stdout and stderr

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._fd_lock = threading.Lock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end inside a character
        self._byte_decoder = codecs.getincrementaldecoder("utf-8")("replace")
        super().__init__(*args, **kwargs)
        self.both.append(self)

    @staticmethod
    def hold() -> None:
        """Keep what is written from now on for the next cell: output after "idle" belongs to no cell."""
        OrderedStream._outbox.holds = True

    @staticmethod
    def release() -> None:
        """Send what was held back, as the first output of the cell that starts now."""
        if OrderedStream._outbox.holds:
            OrderedStream._outbox.release(OrderedStream.both[-1])
            OrderedStream.both[0].flush()

    @staticmethod
    @contextlib.contextmanager
    def sending() -> Iterator[None]:
        """Send what is written meanwhile. What waits for the next cell goes on waiting."""
        outbox = OrderedStream._outbox
        with outbox.turn:
            waiting, size = outbox.take()
            outbox.sent(size)
            holds, outbox.holds = outbox.holds, False
        try:
            yield
        finally:
            for stream in OrderedStream.both:
                stream.drain()
            OrderedStream.both[0].flush()
            outbox.holds = holds
            outbox.put_back(waiting[::-1])

    @property
    def buffer(self) -> "BytesStream":
        return BytesStream(self)

    def reconfigure(self, **_options: Any) -> None:
        """Change nothing: the text is UTF-8, and every line is sent at once."""

    def fileno(self) -> int:
        """Return the descriptor whose bytes come out of this stream, for faulthandler and child processes."""
        return 1 if self.name == "stdout" else 2

    def _is_master_process(self) -> bool:
        return not self.pub_thread.in_child  # ipykernel makes a system call for every write

    def write(self, string: str) -> int:
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        if self.pub_thread is None:
            raise ValueError("I/O operation on closed file")
        if not string.isascii():
            string = string.encode("utf-8", "replace").decode("utf-8")  # no message can carry a lone surrogate
        self._outbox.put(self, string)
        # Hold no lock from here on: the publishing thread may wait for the host, and others would wait for the lock.
        if not self._is_master_process():
            if "\n" in string or self._outbox.size > STREAM_BUFFER:  # print() writes its text and its newline apart
                self._flush()
        elif self._outbox.size > STREAM_BUFFER:
            self.flush()
        elif not self._outbox.holds:
            self._schedule_flush()
        return len(string)

    def _flush(self) -> None:
        """Publish all that waits.

        Runs in the publisher's thread, or in the main thread while no cell runs: a signal handler can leave a cell's
        code at any point, and text that the cell had taken would be lost. In a forked child the writing thread runs it.
        """
        self._flush_pending = False
        with self._outbox.turn:
            if self._outbox.holds:
                return
            pieces, size = self._outbox.take()
            pieces.reverse()
            start = 0  # of what is not sent yet, in the last of the pieces
            try:
                while pieces:
                    stream, text = pieces[-1]
                    longest = STREAM_PIECE if is_plain(text) else WIDE_PIECE
                    for start in range(0, len(text), longest):
                        stream._publish(text[start : start + longest])
                    start = 0
                    pieces.pop()
            except BaseException:  # a cell has changed what jupyter_client calls: the end of the cell sends the rest
                if pieces:
                    pieces[-1] = pieces[-1][0], pieces[-1][1][start:]
                self._outbox.put_back(pieces)
                if threading.get_ident() != self.pub_thread.thread.ident:
                    raise
            finally:
                self._outbox.sent(size)

    def _publish(self, text: str) -> None:
        content = pack_text(self.name, text)
        self.session.pid = os.getpid()  # in a forked child Session would refuse to send
        self.session.send(self.pub_thread, self.session.msg("stream", content), ident=self.topic)

    def flush(self) -> None:
        """Send all text written so far before anything that is published next. Return at once if there is none.

        ipykernel flushes six times in a trivial cell. Each flush takes two hops between threads: 3 of 12 ms under
        gVisor.
        """
        publisher, size = self.pub_thread, self._outbox.size
        by_request = publisher.called_by_main and publisher.gathers
        at_once = publisher.in_child or threading.get_ident() == publisher.thread.ident
        if not size or self._outbox.holds:
            self._flush_pending = False  # the other stream's flush may have sent this stream's text
        elif publisher.in_push:
            self._schedule_flush()
        elif at_once or (by_request and size <= FRAME):
            self._flush()
        else:
            # Under gVisor, 1 MB takes 44 ms in the main thread and 38 ms in the publisher's, whose memory malloc keeps.
            # There is no time limit at the end of a cell, because output after "idle" belongs to no cell.
            publisher.wait_for(self._flush, -1 if by_request else self.flush_timeout)

    def close(self) -> None:
        """Send what waits and stay open. A cell that closed its stdout would end all output of this kernel."""
        self.flush()

    def _setup_stream_redirects(self, name: str) -> None:
        super()._setup_stream_redirects(name)
        flags = fcntl.fcntl(self._fid, fcntl.F_GETFL)
        fcntl.fcntl(self._fid, fcntl.F_SETFL, flags | os.O_NONBLOCK)

    def _watch_pipe_fd(self) -> None:
        while self._should_watch:
            try:
                select.select([self._fid], [], [])
            except (OSError, ValueError):  # the cell closed the descriptor
                return
            self.drain()

    def decode(self, data: bytes) -> str:
        """Return the text of bytes of this stream. Keeps the beginning of a character for the next call."""
        return self._byte_decoder.decode(data)

    def drain(self) -> None:
        """Read what C code and child processes have written to the file descriptor, at most one full pipe.

        Reading until the pipe is empty would let a child that keeps writing delay the end of its cell.
        """
        if self._fid is None:
            return
        with self._fd_lock:
            try:
                left = fcntl.fcntl(self._fid, fcntl.F_GETPIPE_SZ)
            except OSError:  # the cell closed the descriptor
                self._should_watch = False
                return
            while left > 0:
                try:
                    data = os.read(self._fid, left)
                except BlockingIOError:
                    return
                except OSError:
                    data = b""
                if not data:  # the cell closed the descriptor
                    self._should_watch = False
                    return
                left -= len(data)
                self.write(self._decoder.decode(data))


class BytesStream(io.RawIOBase):
    """``sys.stdout.buffer``: takes bytes, in order with the stream's text."""

    def __init__(self, stream: OrderedStream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, data: Any) -> int:
        self._stream.write(self._stream.decode(bytes(data)))
        return memoryview(data).nbytes

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        """Stay open, as the stream does."""
