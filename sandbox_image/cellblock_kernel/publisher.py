"""Send all that cells publish to the host: one socket, and the rules about which thread may use it when."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import zmq
from ipykernel.iostream import IOPubThread
from jupyter_client.session import DELIM
from zmq.backend import Socket

from cellblock_kernel import loops
from cellblock_kernel.messages import as_bytes, pack
from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

# Frames that may wait for the host. The sender of the next one waits too (XPUB_NODROP).
IOPUB_HIGH_WATER = 25
# Messages that may wait to be joined into a frame. Beyond that the main thread sends them.
QUEUE = 25
# Bytes of small messages that travel as one frame: sending a frame wakes two threads here and the host.
FRAME = 64 * 1024
# Seconds in which the messages of a running cell gather. If two threads hand over the interpreter's lock for each
# display, one display takes up to 2 ms under gVisor.
PAUSE = 0.002


def finishing(work: Callable[[], object], done: Callable[[], object]) -> None:
    """Run ``work``, and ``done`` in any case: somebody waits for it."""
    try:
        work()
    finally:
        done()


class Publisher(IOPubThread):
    """The thread that sends what is published. In ipykernel each message takes a hop to this thread.

    While the main thread serves a request with its own code, its messages wait for the end of the request, and the main
    thread sends them. While it runs code of the session, this thread sends them, because a signal handler can leave
    that code at any point. This thread also sends the messages of all other threads, so none of them waits for the
    host.
    """

    io_loop: Any
    in_child = False  # this process was forked from the kernel's
    serves = False  # the main thread serves a request and will call ``push`` at its end
    late_text: Callable[[str, str], object]  # writes text to the stream of a name
    gathers = False  # it serves the request with its own code, so its messages may wait for that end

    def __init__(self, socket: Any, session: Any) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._enter_child)
        super().__init__(socket, pipe=True, session=session)
        self.later = Later(self)

    def _renew(self) -> None:
        self._queue: deque[list[bytes]] = deque()
        self._turn: Any = threading.RLock()  # hold it to use the socket
        self._main = threading.get_ident()
        self._push_scheduled = False

    def _enter_child(self) -> None:
        self.in_child = True
        self._renew()  # a thread that does not exist in the child may hold the lock

    def _is_master_process(self) -> bool:
        return not self.in_child

    def _thread_main(self) -> None:
        loops.run(self.io_loop, lambda: self._stopped)
        self.io_loop.close(all_fds=True)

    def _setup_event_pipe(self) -> None:
        """Make none: ``schedule`` wakes the loop itself. ipykernel's pipe gives every thread that prints a socket."""

    def schedule(self, f: Callable[[], object]) -> None:
        """Call ``f`` in this thread. Without the thread, as in a forked child, call it now."""
        if self.thread.is_alive():
            self.io_loop.asyncio_loop.call_soon_threadsafe(f)
        else:
            f()

    def listen_again(self) -> None:
        """Look for what was missed while a cell's changes to Python's objects lasted."""
        loops.listen_again(self._pipe_in)
        self.schedule(self._take_subscriptions)
        self.schedule(self.push)

    @property
    def called_by_main(self) -> bool:
        return threading.get_ident() == self._main

    def send_multipart(self, frames: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        if self.in_child:
            super().send_multipart(frames, *args, **kwargs)
            return
        self._queue.append(as_bytes(frames))
        if self.in_push:
            self.schedule(self.push)
        elif threading.get_ident() == self.thread.ident:
            self.push()
        elif not (self.called_by_main and self.gathers):
            self._schedule_push()
        elif len(self._queue) >= QUEUE or sum(map(len, self._queue[-1])) > FRAME:
            self.push()

    def _handle_pipe_msg(self, msg: list[bytes]) -> None:
        """Send what a forked child publishes. A child of an earlier cell publishes for the cell that runs now."""
        if msg[0] != self._pipe_uuid or not self._is_later(msg[1:]):
            super()._handle_pipe_msg(msg)
            return
        idents, frames = self.session.feed_identities(msg[1:])
        message = self.session.deserialize(frames)
        content = message["content"]
        if message["msg_type"] == "stream":
            self.late_text(content["name"], content["text"])
        else:
            self.session.send(self, message["msg_type"], content, None, ident=idents)

    def _is_later(self, frames: list[bytes]) -> bool:
        """Return whether a child's message is of another request than the one that runs, or none runs."""
        current = self.session.current
        parent = frames[frames.index(DELIM) + 3]
        return self.session.held is not None or (current is not None and current["msg_id"].encode() not in parent)

    def send_later(self, frames: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        """Send a cell's value or error together with the end of its request, because it usually is the last message.

        Outside a request it is sent like any other message.
        """
        if self.called_by_main and self.serves and not self.in_child and len(self._queue) < QUEUE:
            self._queue.append(as_bytes(frames))
        else:
            self.send_multipart(frames, *args, **kwargs)

    def _schedule_push(self) -> None:
        if not self._push_scheduled:
            self._push_scheduled = True
            try:
                self.schedule(self._push_soon)
            except BaseException:  # raised by a signal handler
                self._push_scheduled = False
                raise
        if self.called_by_main and len(self._queue) > QUEUE:
            self.wait_for(self.push)

    def _push_soon(self) -> None:
        self.io_loop.asyncio_loop.call_later(PAUSE, self.push)

    @contextlib.contextmanager
    def session_code(self) -> Iterator[None]:
        """Let this thread send what the main thread publishes while it runs code of the session.

        First sends what the main thread has published so far, which includes "busy". From then on the host counts the
        cell as started and may interrupt it.
        """
        self.push()
        self.gathers = False
        try:
            yield
        finally:
            self.gathers = True

    def wait_for(self, work: Callable[[], object], seconds: float = 10.0) -> None:
        """Run ``work`` in this thread and wait for it. Uses no Event, which a signal handler may leave broken.

        Args:
            seconds: the longest wait; -1 waits without limit.
        """
        if self.in_push:
            self.schedule(work)
            return
        done = threading.Lock()
        done.acquire()
        self.schedule(partial(finishing, work, done.release))
        done.acquire(timeout=seconds)

    @property
    def in_push(self) -> bool:
        """Whether the caller already holds the socket, as a finalizer can. Such a caller must not wait for a push."""
        return bool(self._turn._is_owned())

    def push(self) -> None:
        """Send what was published so far: small messages joined, large ones as they are, which saves a copy.

        The main thread joins the large ones too. If the handler of a cell's alarm raises in the middle of a message of
        several frames, the rest of the message would corrupt the next one. Messages that arrive meanwhile get a push of
        their own, because a thread that never stops publishing would otherwise keep the others waiting.
        """
        in_thread = threading.get_ident() == self.thread.ident
        with self._turn:
            self._push_scheduled = False
            packed: list[bytes] = []
            size = 0
            for _ in range(len(self._queue)):
                frames = self._queue.popleft()
                weight = sum(map(len, frames))
                if packed and size + weight > FRAME:
                    self._send([b"".join(packed)])
                    packed, size = [], 0
                if weight > FRAME and in_thread:
                    self._send(frames)
                else:
                    packed.append(pack(frames))
                    size += weight
            if packed:
                self._send([b"".join(packed)])

    def _send(self, frames: list[bytes]) -> None:
        """Send a message, through the part of pyzmq that is C: a cell can change the rest between two frames."""
        if not self.closed and not self.socket.closed:
            for frame in frames[:-1]:
                Socket.send(self.socket, frame, zmq.SNDMORE)
            Socket.send(self.socket, frames[-1])
            if self._has_subscription():
                self.schedule(self._take_subscriptions)

    def _has_subscription(self) -> bool:
        """Return whether a subscription waits.

        Asked after each use of the socket: its file descriptor does not signal events that a use has consumed.
        """
        return bool(self.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN)

    def _setup_xpub_listener(self) -> None:
        self.io_loop.add_handler(self.socket, self._take_subscriptions, self.io_loop.READ)
        self.io_loop.add_callback(self._take_subscriptions)

    def _take_subscriptions(self, *_: Any) -> None:
        """Welcome the host. Runs in this thread."""
        with self._turn:
            while not self.closed and not self.socket.closed and self._has_subscription():
                self._handle_subscription(self.socket.recv_multipart())


class Later:
    """Takes the publisher's place for a cell's last message, which it sends with ``Publisher.send_later``."""

    def __init__(self, publisher: Publisher) -> None:
        self.send_multipart = publisher.send_later
