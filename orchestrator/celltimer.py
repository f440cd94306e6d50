"""CellTimer: the time limit of one cell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class CellTimer:
    """Calls ``expired`` once the cell has run for too long. Used once.

    Args:
        seconds: that it may run.
        expired: called once.
    """

    def __init__(self, seconds: float, expired: Callable[[], None]) -> None:
        self._left = seconds
        self._expired = expired
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Let the time run."""
        self.cancel()
        self._handle = self._loop.call_later(self._left, self._expired)

    def pause(self, most: float) -> None:
        """Stop the time until ``start``, for ``most`` seconds at most."""
        if self._handle is not None:
            self._left = max(0.0, self._handle.when() - self._loop.time())
            self.cancel()
        self._handle = self._loop.call_later(max(0.0, most), self._expired)

    def cancel(self) -> None:
        """Never call ``expired``, unless started again. Idempotent."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
