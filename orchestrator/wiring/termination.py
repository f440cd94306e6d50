"""Termination: on SIGTERM, in a program that does not handle it, managers shut down first and keep their sessions."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

Close = Callable[[], Awaitable[None]]


class Termination:
    """The functions of one event loop that run before SIGTERM ends the process."""

    _of_loop: dict[asyncio.AbstractEventLoop, Termination] = {}  # noqa: RUF012 - a process has one SIGTERM handler

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._closers: list[Close] = []
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    def call_first(cls, close: Close) -> Callable[[], None]:
        """Call ``close`` before SIGTERM ends the process. Return a function that cancels this.

        Has no effect outside the main thread, or if the program, or a web server in it, handles SIGTERM itself: that
        handler must shut the manager down. A second SIGTERM ends the process at once.
        """
        loop = asyncio.get_running_loop()
        found = cls._of_loop.get(loop)
        if found is None:
            if threading.current_thread() is not threading.main_thread():
                return lambda: None
            if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
                return lambda: None
            found = cls._of_loop[loop] = cls(loop)
            loop.add_signal_handler(signal.SIGTERM, found._begin)
        found._closers.append(close)
        return lambda: found._call_off(close)

    def _call_off(self, close: Close) -> None:
        if close in self._closers:
            self._closers.remove(close)
        if not self._closers and self._ending is None:
            self._release()

    def _release(self) -> None:
        if self._of_loop.pop(self._loop, None) is not None and not self._loop.is_closed():
            self._loop.remove_signal_handler(signal.SIGTERM)  # back to the default

    def _begin(self) -> None:
        if self._ending is not None:
            self._end()
        self._ending = self._loop.create_task(self._close_all())

    async def _close_all(self) -> None:
        closed = await asyncio.gather(*(close() for close in self._closers), return_exceptions=True)
        for error in closed:
            if isinstance(error, BaseException):
                _log.error("a manager did not shut down cleanly: %s", error)
        self._end()

    def _end(self) -> None:
        self._release()
        os.kill(os.getpid(), signal.SIGTERM)
