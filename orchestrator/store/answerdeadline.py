"""AnswerDeadline: ends the connection to a database server that does not answer in time.

The driver waits for an answer without a bound: a server that is stopped, or behind a network that drops packets, would
hold the thread for ever. A connection that is ended makes the driver raise its own error in that thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

from sqlalchemy import Connection

_LOOK = 0.25  # seconds between two looks


class AnswerDeadline:
    """The deadlines of the connections of one database. One thread, begun when it is first needed, watches them all."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[float, socket.socket]] = {}  # by a number of their own
        self._changed = threading.Condition()
        self._next = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextlib.contextmanager
    def of(self, connection: Connection, seconds: float) -> Iterator[Callable[[], bool]]:
        """End the connection if the block takes longer than ``seconds``. Yield whether it has been in time so far."""
        driver = connection.connection.driver_connection
        # A copy of the descriptor: the driver may close its own, whose number could be another file's by then.
        own = socket.socket(fileno=os.dup(driver.fileno()))  # type: ignore[union-attr]
        with own:
            number = self._add(time.monotonic() + seconds, own)
            try:
                yield lambda: number in self._waiting
            finally:
                with self._changed:
                    self._waiting.pop(number, None)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _add(self, end: float, own: socket.socket) -> int:
        with self._changed:
            self._next += 1
            self._waiting[self._next] = (end, own)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="cellblock-deadlines", daemon=True)
                self._thread.start()
            elif len(self._waiting) == 1:
                self._changed.notify()
            return self._next

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                for number, (end, own) in list(self._waiting.items()):
                    if end < now:
                        del self._waiting[number]
                        with contextlib.suppress(OSError):
                            own.shutdown(socket.SHUT_RDWR)
                self._changed.wait(_LOOK if self._waiting else None)
