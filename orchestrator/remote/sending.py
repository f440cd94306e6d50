"""Sending: how long a server may leave what is sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from types import TracebackType

from orchestrator.errors import ServerUnavailableError


class Sending:
    """Bounds how long a server may leave what is sent to it. What the caller's own data takes does not count.

    A server that is stopped takes nothing from a unix socket for ever.

    Args:
        seconds: for each piece.

    Raises:
        ServerUnavailableError: the server has not taken a piece in this time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limit = asyncio.timeout(None)
        self._over = False

    async def __aenter__(self) -> Sending:
        await self._limit.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            raise ServerUnavailableError(
                f"the server has taken nothing of the request for {self._seconds:g} s.",
                remedy="What it has done of the request is not known.",
            ) from None

    async def each(self, data: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        """Yield what ``data`` yields. aiohttp asks for the next piece when the server has taken most of this one."""
        async for piece in data:
            self._expect(asyncio.get_running_loop().time() + self._seconds)
            yield piece
            self._expect(None)

    def _expect(self, when: float | None) -> None:
        if not self._over and not self._limit.expired():
            self._limit.reschedule(when)
