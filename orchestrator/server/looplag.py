"""LoopLag: for how long the server's event loop was held up, at most: then no client was answered."""

from __future__ import annotations

import asyncio
import time

_EVERY = 0.02  # seconds between two looks


class LoopLag:
    """The longest time by which the event loop was late, and how much of it the server itself took.

    The loop is late because its thread computes, or because the thread has to wait: for a core, or for another thread
    of the process.

    Attributes:
        longest: seconds.
        computing: seconds of CPU that the thread used while it was late, at most.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self.computing = 0.0
        self._begun = time.monotonic()

    def begin(self) -> None:
        """Forget what was before: connections are taken from now on."""
        self.longest = self.computing = 0.0
        self._begun = time.monotonic()

    async def run(self) -> None:
        """Look all the time, until cancelled."""
        while True:
            due, spent = time.monotonic() + _EVERY, time.thread_time()
            await asyncio.sleep(_EVERY)
            late = time.monotonic() - max(due, self._begun)
            self.longest = max(self.longest, late)
            self.computing = max(self.computing, min(late, time.thread_time() - spent))
