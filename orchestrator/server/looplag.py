"""LoopLag: for how long the server's event loop was held up, at most: then no client was answered."""

from __future__ import annotations

import asyncio
import time

_EVERY = 0.02  # seconds between two looks


class LoopLag:
    """The longest time by which the event loop was late.

    Attributes:
        longest: seconds, since the start.
    """

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        """Look all the time, until cancelled."""
        while True:
            due = time.monotonic() + _EVERY
            await asyncio.sleep(_EVERY)
            self.longest = max(self.longest, time.monotonic() - due)
