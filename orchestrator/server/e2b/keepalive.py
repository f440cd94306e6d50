"""Streams of bytes that say from time to time that they are alive: a client, or a proxy, waits for that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from orchestrator.server.waiting import stopped


async def with_keepalive(
    pieces: AsyncGenerator[bytes, None], seconds: float, ping: bytes
) -> AsyncGenerator[bytes, None]:
    """Yield what comes, and ``ping`` after so many seconds in which nothing came."""
    async with contextlib.aclosing(pieces):
        coming = asyncio.ensure_future(anext(pieces, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=seconds)
                if not done:
                    yield ping
                    continue
                piece = coming.result()
                if piece is None:
                    return
                yield piece
                coming = asyncio.ensure_future(anext(pieces, None))
        finally:
            await stopped(coming)
