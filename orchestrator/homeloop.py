"""HomeLoop: the event loop that an object belongs to. Its futures, locks and sockets work in that loop only."""

from __future__ import annotations

import asyncio
import threading
from typing import Self

from orchestrator.errors import WrongEventLoopError

_ELSEWHERE = (
    "Use each manager, with its sessions and kernels, in the event loop that started it; other threads use "
    "`cellblock.sync.Manager`, or `asyncio.run_coroutine_threadsafe`."
)
_CLOSED = "Make a new manager in this event loop, or run the whole program in one `asyncio.run`."


class HomeLoop:
    """The event loop of a manager, a pool, a session or a kernel. Safe to use from several threads."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    @classmethod
    def of_caller(cls) -> Self:
        """Return the home of an object that is made now: the running event loop, if there is one."""
        home = cls()
        home._loop = _running()
        return home

    def enter(self) -> bool:
        """Make the running event loop the home, if there is none yet. Return whether there was none.

        Raises:
            WrongEventLoopError: the home is another event loop.
        """
        with self._lock:
            new = self._loop is None
            self._loop = self._loop or _running()
        self.check()
        return new

    def leave(self) -> None:
        """Forget the home: nothing belongs to it any longer."""
        self._loop = None

    def check(self) -> None:
        """Refuse a caller outside the home. Without a home, accept every caller.

        Raises:
            WrongEventLoopError: another event loop runs in this thread, or none.
        """
        home = self._loop
        if home is None or home is _running():
            return
        if home.is_closed():
            message = (
                "a manager, a session or a kernel was used after its event loop was closed. Nothing was done; its "
                "kernels run until this process ends."
            )
            raise WrongEventLoopError(message, remedy=_CLOSED)
        where = "outside of its event loop" if _running() is None else "in another event loop than its own"
        message = f"a manager, a session or a kernel was used {where}. Nothing was done."
        raise WrongEventLoopError(message, remedy=_ELSEWHERE)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
