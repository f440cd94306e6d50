"""Reading a session's file in pieces, so that a large one takes no memory of the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from orchestrator.limits import MIB
from orchestrator.server.directory import Served

PIECE: Final = 4 * MIB  # bytes that are read at once
LARGEST: Final = 1024 * MIB


async def piece_of(served: Served, name: str, at: int, end: int | None) -> bytes:
    """Return the piece of a file that begins at a byte; it ends before the byte ``end``.

    Raises:
        See ``AgentKernelManager.read_file``.
    """
    length = PIECE if end is None else min(PIECE, end - at)
    return await served.manager.read_file(served.session, name, offset=at, length=length, limit=PIECE)


async def pieces_of(
    served: Served, name: str, start: int, end: int | None, piece: bytes
) -> AsyncGenerator[bytes, None]:
    """Yield a file's content from byte ``start`` on, of which ``piece`` is the first. None: to its end, or 1 GiB."""
    at = start
    while piece:
        yield piece
        at += len(piece)
        if at >= (LARGEST if end is None else end):
            return
        piece = await piece_of(served, name, at, end)
