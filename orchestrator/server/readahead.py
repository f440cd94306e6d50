"""ReadAhead: takes what generators have yielded by now at once.

Without it, a caller that waits for two generators, or for one with a time limit, needs a task for each item. That costs
more than most events do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Generic, Self, TypeVar

from orchestrator.server.waiting import stopped

T = TypeVar("T")
_MOST = 16  # items that are read ahead: a source waits until one is taken


class ReadAhead(Generic[T]):
    """Reads sources, each in a task of its own, while the context is open. It is over when the first source is.

    Leaving the context cancels what a source waits for, and closes it.
    """

    def __init__(self, *sources: AsyncGenerator[T, None]) -> None:
        self._sources = sources
        self._ready: list[T] = []
        self._come, self._room = asyncio.Event(), asyncio.Event()
        self._is_over = False
        self._fault: Exception | None = None

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.ensure_future(self._read(source)) for source in self._sources]
        return self

    async def __aexit__(self, *_: object) -> None:
        await stopped(*self._tasks)

    async def come(self, seconds: float | None = None) -> bool:
        """Wait until ``take`` has something to say. Return False if it has not after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._come.wait()
        return self._come.is_set()

    def take(self) -> list[T]:
        """Return the items that came since the last call, in order; none at the end.

        Raises:
            What a source has raised, once the items before it are taken.
        """
        taken, self._ready = self._ready, []
        self._room.set()
        if not self._is_over:
            self._come.clear()
        elif not taken and self._fault is not None:
            raise self._fault
        return taken

    async def _read(self, source: AsyncGenerator[T, None]) -> None:
        try:
            async with contextlib.aclosing(source):
                async for item in source:
                    self._ready.append(item)
                    self._come.set()
                    while len(self._ready) >= _MOST:
                        self._room.clear()
                        await self._room.wait()
        except Exception as error:  # noqa: BLE001 - ``take`` raises it
            self._fault = error
        finally:
            if self._fault is not None or source is self._sources[0]:
                self._is_over = True
                self._come.set()
