"""stdout and stderr: what cells and their child processes write, in its order."""

import codecs
import fcntl
import os
import select
import threading

from ipykernel.iostream import OutStream

from cellblock_kernel.publisher import FRAME

# One stream message carries at most this many characters, so that a single print of any length stays far below the
# host's bound on a message, and that IOPUB_HIGH_WATER of them, which an interrupted cell still has to get rid of, are
# soon taken. Text beyond ASCII takes up to four times the room on the host, and control characters six.
STREAM_PIECE = 256 * 1024
WIDE_PIECE = 64 * 1024
# A cell that prints faster than the host reads waits once this much text is buffered.
STREAM_BUFFER = 1024 * 1024
# What a message of its own costs, in characters: a thousand short lines in turn on both streams fill the buffer too.
PIECE_COST = 1024

UNUSUAL = bytes(code for code in range(32) if chr(code) not in "\n\r\t")


class Outbox:
    """What the streams have taken and not sent yet, in the order of writing, whichever of the two it was written to.

    ipykernel buffers each stream for itself, so that a line on stderr between two on stdout arrives after both.
    """

    def __init__(self):
        self._empty()
        os.register_at_fork(after_in_child=self._empty)  # what waits is the parent's to send, and the lock may be held

    def _empty(self):
        self._lock = threading.RLock()
        self.turn = threading.RLock()  # to take and publish what waits
        self._pieces = []
        self.size = self._taken = 0

    def put(self, stream, text):
        parent = stream.parent_header
        with self._lock:
            if not self._pieces or self._pieces[-1][0] is not stream or self._pieces[-1][1] != parent:
                self._pieces.append((stream, parent, []))
                self.size += PIECE_COST
            self._pieces[-1][2].append(text)
            self.size += len(text)

    def take(self):
        """Return (stream, parent header, text) of all that waits, and its size, which counts until it was ``sent``."""
        with self._lock:
            pieces = [(stream, parent, "".join(texts)) for stream, parent, texts in self._pieces]
            self._pieces, size = [], self.size - self._taken
            self._taken += size
        return pieces, size

    def sent(self, size):
        with self._lock:
            self.size -= size
            self._taken -= size


def is_plain(text):
    """Whether JSON takes at most twice the room for it."""
    return text.isascii() and len(text.encode().translate(None, UNUSUAL)) == len(text)


class OrderedStream(OutStream):
    """stdout or stderr; both go through one outbox."""

    _outbox = Outbox()

    def __init__(self, *args, **kwargs):
        self._fd_lock = threading.Lock()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end within a character
        super().__init__(*args, **kwargs)

    def _is_master_process(self):
        return not self.pub_thread.in_child  # ipykernel asks the system, at every write

    def write(self, string):
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        if self.pub_thread is None:
            raise ValueError("I/O operation on closed file")
        if not string.isascii():
            string = string.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate fits into no message
        self._outbox.put(self, string)
        # No lock is held from here on: the publishing thread may have to wait for the host, and others for it.
        if not self._is_master_process():
            self._flush()
        elif self._outbox.size > STREAM_BUFFER:
            self.flush()
        else:
            self._schedule_flush()
        return len(string)

    def _flush(self):
        """Publish all that waits: in the publisher's thread, or in the main one while no cell runs.

        A cell, which a signal's handler may leave at any point, would lose what it took. In a forked child the writer
        does.
        """
        self._flush_pending = False
        with self._outbox.turn:
            pieces, size = self._outbox.take()
            try:
                for stream, parent, text in pieces:
                    longest = STREAM_PIECE if is_plain(text) else WIDE_PIECE
                    for start in range(0, len(text), longest):
                        content = {"name": stream.name, "text": text[start : start + longest]}
                        self.session.pid = os.getpid()  # a thread survives a fork; Session would refuse to send
                        message = self.session.msg("stream", content, parent=parent)
                        self.session.send(self.pub_thread, message, ident=stream.topic)
            finally:
                self._outbox.sent(size)

    def flush(self):
        """Wait until all that was written is on its way, before what is published next; not where nothing is.

        ipykernel flushes six times in a trivial cell, and each takes two hops between threads: 3 of 12 ms under gVisor.
        """
        publisher, size = self.pub_thread, self._outbox.size
        by_request = publisher.called_by_main and publisher.gathers
        at_once = publisher.in_child or threading.get_ident() == publisher.thread.ident
        if not size:
            self._flush_pending = False  # the other stream's flush may have sent what this one was to
        elif publisher.in_push:
            self._schedule_flush()
        elif at_once or (by_request and size <= FRAME):
            self._flush()
        else:
            # 1 MB takes 44 ms in the main thread under gVisor and 38 in the other, whose memory malloc keeps. At a
            # cell's end there is no limit: what comes after "idle" is nobody's.
            publisher.wait_for(self._flush, -1 if by_request else self.flush_timeout)

    def close(self):
        """Send what waits. A cell that closes its stdout would else end all output of this kernel, and wedge it."""
        self.flush()

    def _setup_stream_redirects(self, name):
        super()._setup_stream_redirects(name)
        flags = fcntl.fcntl(self._fid, fcntl.F_GETFL)
        fcntl.fcntl(self._fid, fcntl.F_SETFL, flags | os.O_NONBLOCK)

    def _watch_pipe_fd(self):
        while self._should_watch:
            select.select([self._fid], [], [])
            self.drain()

    def drain(self):
        """Take over what C code and child processes have written to the file descriptor so far: at most a pipe full.

        Not until there is nothing: a child that goes on writing would keep its cell from ending.
        """
        if self._fid is None:
            return
        with self._fd_lock:
            left = fcntl.fcntl(self._fid, fcntl.F_GETPIPE_SZ)
            while left > 0:
                try:
                    data = os.read(self._fid, left)
                except BlockingIOError:
                    return
                if not data:  # the cell closed the descriptor
                    self._should_watch = False
                    return
                left -= len(data)
                self.write(self._decoder.decode(data))
