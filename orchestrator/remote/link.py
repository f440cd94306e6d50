"""Link: how the calls of one session reach its server: a connection, or the way through a cluster."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

Query = Mapping[str, str | int | float | bool]
Numbered = AsyncGenerator[tuple[int | None, dict[str, Any]], None]


class Rereadable(AsyncIterable[bytes]):
    """Data that each iteration reads from its beginning, so that it can be sent again."""


class Download(Protocol):
    """An answer whose body is read piece by piece."""

    async def aread(self) -> bytes: ...

    def aiter_bytes(self, chunk_size: int | None = None) -> AsyncIterator[bytes]: ...


class Link(Protocol):
    """What ``RemoteKernelManager`` and its sessions, cells and commands send requests over. See ``Connection``."""

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, query: Query | None = None
    ) -> dict[str, Any]: ...

    async def acquire(self, body: Mapping[str, Any]) -> dict[str, Any]: ...

    def events(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, seen: int = 0
    ) -> AbstractAsyncContextManager[Numbered]: ...

    def download(self, path: str, query: Query) -> AbstractAsyncContextManager[Download]: ...

    async def upload(self, path: str, query: Query, data: bytes | AsyncIterable[bytes]) -> dict[str, Any]: ...

    def staying(self) -> Link:
        """Return a link to the server that has the session now: for what is there only, such as a started cell."""
