"""Continuing: what an agent waits for whose session is being taken over from a dead process."""

from __future__ import annotations

import asyncio


class Continuing:
    """One agent's session on its way from a dead process. Made in the event loop of those who wait.

    Attributes:
        wanted: set by a caller that waits: its session goes before those that nobody asks for.
    """

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self._try: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self) -> None:
        """Ask for the session, and wait until it is continued, or left to the next start.

        Raises:
            StoreError: it cannot be continued now; it is tried again soon.
        """
        self.wanted.set()
        await asyncio.shield(self._try)

    def end(self) -> None:
        """Let those go on who wait."""
        self._try.set_result(None)

    def fail(self, error: Exception) -> None:
        """Raise the error in those who wait. Who asks later waits for the next try."""
        self._try.set_exception(error)
        self._try.exception()  # retrieved, also when nobody waits
        self._try = asyncio.get_running_loop().create_future()
