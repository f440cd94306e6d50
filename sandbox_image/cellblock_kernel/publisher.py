"""The kernel's way to the host: one socket for all that cells publish, and who may use it when."""

import contextlib
import os
import threading
from collections import deque

import zmq
from ipykernel.iostream import IOPubThread

from cellblock_kernel.messages import as_bytes, pack

# Frames that wait for the host before whoever sends the next waits too (XPUB_NODROP).
IOPUB_HIGH_WATER = 25
# Messages that wait for a frame before the main thread has them sent.
QUEUE = 25
# Bytes of small messages that go as one frame: to send one wakes two threads here and the host there.
FRAME = 64 * 1024
# Seconds in which what a running cell publishes gathers: where two threads hand on the interpreter's lock for every
# display, one takes up to 2 ms under gVisor.
PAUSE = 0.002


class Publisher(IOPubThread):
    """The way to the host of all that is published. In ipykernel each message takes a hop to this thread.

    What the main thread publishes by itself goes with the request's end, and is sent by it. What the session's code
    publishes is sent by this thread: a signal's handler may leave that code at any point. So is what other threads
    publish, none of which has to wait for the host.
    """

    in_child = False  # whether this process was forked from the kernel's
    serves = False  # whether the main thread serves a request, at the end of which it will ``push``
    gathers = False  # whether it does so by its own code, so that what it publishes may wait for that end

    def __init__(self, socket, session):
        self._renew()
        os.register_at_fork(after_in_child=self._enter_child)
        super().__init__(socket, pipe=True, session=session)
        self.later = Later(self)

    def _renew(self):
        self._queue = deque()
        self._turn = threading.RLock()  # with the socket
        self._main = threading.get_ident()
        self._push_scheduled = False

    def _enter_child(self):
        self.in_child = True
        self._renew()  # the lock may be held, by a thread that is not here

    def _is_master_process(self):
        return not self.in_child

    @property
    def called_by_main(self):
        return threading.get_ident() == self._main

    def send_multipart(self, frames, *args, **kwargs):
        if self.in_child:
            super().send_multipart(frames, *args, **kwargs)
            return
        self._queue.append(as_bytes(frames))
        if self.in_push:
            self.schedule(self.push)
        elif threading.get_ident() == self.thread.ident:
            self.push()
        elif not (self.called_by_main and self.gathers):
            self._have_pushed()
        elif len(self._queue) >= QUEUE or sum(map(len, self._queue[-1])) > FRAME:
            self.push()

    def send_later(self, frames, *args, **kwargs):
        """Send a cell's value or error, which are its last as a rule: with the end of its request, if one is served."""
        if self.called_by_main and self.serves and not self.in_child and len(self._queue) < QUEUE:
            self._queue.append(as_bytes(frames))
        else:
            self.send_multipart(frames, *args, **kwargs)

    def _have_pushed(self):
        if not self._push_scheduled:
            self._push_scheduled = True
            try:
                self.schedule(self._push_soon)
            except BaseException:  # a signal's handler
                self._push_scheduled = False
                raise
        if self.called_by_main and len(self._queue) > QUEUE:
            self.wait_for(self.push)

    def _push_soon(self):
        self.io_loop.call_later(PAUSE, self.push)

    @contextlib.contextmanager
    def session_code(self):
        """Have what the main thread publishes sent by this one, while code of the session runs; what it has goes first.

        That is "busy": the host takes a cell for begun then, and may interrupt it.
        """
        self.push()
        self.gathers = False
        try:
            yield
        finally:
            self.gathers = True

    def wait_for(self, work, seconds=10.0):
        """Have the thread do something, and wait for it. Not with an Event: a signal's handler may leave it broken.

        Args:
            seconds: at most; -1: however long it takes.
        """
        if self.in_push:
            self.schedule(work)
            return
        done = threading.Lock()
        done.acquire()
        self.schedule(work)
        self.schedule(done.release)
        done.acquire(timeout=seconds)

    @property
    def in_push(self):
        """Whether the caller has its turn with the socket, as a finalizer may: it must not wait for another."""
        return self._turn._is_owned()

    def push(self):
        """Send what was published so far: small messages together, large ones as they are, to spare a copy.

        The main thread packs those too: half a message, where the handler of a cell's alarm raises, would spoil the
        next. What comes meanwhile has a push of its own; a thread that never rests would else keep others waiting.
        """
        in_thread = threading.get_ident() == self.thread.ident
        with self._turn:
            self._push_scheduled = False
            packed, size = [], 0
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

    def _send(self, frames):
        if not self.closed and not self.socket.closed:
            self.socket.send_multipart(frames)
            if self._has_news():
                self.schedule(self._take_subscriptions)

    def _has_news(self):
        """Whether a subscription waits. Asked after each use: the descriptor tells nothing that a use has seen."""
        return self.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN

    def _setup_xpub_listener(self):
        self.io_loop.add_handler(self.socket, self._take_subscriptions, self.io_loop.READ)
        self.io_loop.add_callback(self._take_subscriptions)

    def _take_subscriptions(self, *_):
        """Welcome the host. Called in the thread."""
        with self._turn:
            while not self.closed and not self.socket.closed and self._has_news():
                self._handle_subscription(self.socket.recv_multipart())


class Later:
    """Stands for the publisher where a cell's last message comes from."""

    def __init__(self, publisher):
        self.send_multipart = publisher.send_later
