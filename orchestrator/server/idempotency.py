"""Idempotency: a request that comes again with the same key is answered as it was, and not done again."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from orchestrator.errors import (
    IdempotencyError,
    InvalidInputError,
    NodeLeaseError,
    NotOwnerError,
    ServerError,
    StoreError,
)
from orchestrator.principal import Principal

T = TypeVar("T")
_KEPT = 24 * 3600.0  # seconds
_MOST = 10_000  # answers of one group
_MOST_BYTES = 32 * 1024 * 1024  # of one group's answers; the oldest are forgotten first
_LONGEST = 255  # characters of a key


@dataclass(slots=True)
class _Entry(Generic[T]):
    digest: bytes
    answer: asyncio.Future[T]
    at: float = field(default_factory=time.monotonic)


class _Share(Generic[T]):
    """The answers of one group, bounded on their own: no group makes another one's be forgotten."""

    def __init__(self, size: Callable[[T], int]) -> None:
        self.entries: OrderedDict[str, _Entry[T]] = OrderedDict()
        self._size = size
        self._bytes = 0

    def settle(self, key: str, answer: asyncio.Future[T]) -> None:
        """Keep an answer, or forget a request that failed."""
        if answer.cancelled() or (answer.exception() is not None and not _has_run(answer.exception())):
            self.entries.pop(key, None)
        elif answer.exception() is not None:
            self.shrink()
        else:
            self._bytes += self._size(answer.result())
            self.shrink()

    def shrink(self) -> None:
        """Forget the oldest answers beyond the bounds."""
        oldest = time.monotonic() - _KEPT
        while self.entries:
            key, entry = next(iter(self.entries.items()))
            fits = len(self.entries) <= _MOST and self._bytes <= _MOST_BYTES and entry.at >= oldest
            if fits or not entry.answer.done():  # what is not done yet ends, and is looked at again then
                return
            del self.entries[key]
            if entry.answer.exception() is None:
                self._bytes -= self._size(entry.answer.result())


def _has_run(error: BaseException | None) -> bool:
    """Return whether a cell has, or may have, run although its request failed."""
    if isinstance(error, NotOwnerError):
        return not error.undone
    return isinstance(error, NodeLeaseError) or (isinstance(error, StoreError) and error.result is not None)


class Idempotency(Generic[T]):
    """The answers of one server, by group and key.

    Args:
        size: returns how many bytes an answer takes.
    """

    def __init__(self, size: Callable[[T], int]) -> None:
        self._size = size
        self._shares: dict[str, _Share[T]] = {}

    async def once(self, principal: Principal, key: str | None, request: bytes, make: Callable[[], Awaitable[T]]) -> T:
        """Return the answer of a request, made once for each key. It is made to its end, also if its client goes.

        Args:
            key: None: make it, and keep nothing.
            request: what the request asks for.

        Raises:
            IdempotencyError: the key came with another request before.
            InvalidInputError: the key has more than 255 characters.
            ServerError: the client cancelled the request.
            Whatever ``make`` raises. A request that failed is made again when it comes again, unless its cell has run,
                and only its end could not be kept.
        """
        if key is None:
            return await make()
        if not 0 < len(key) <= _LONGEST:
            raise InvalidInputError(f"an idempotency key has 1 to {_LONGEST} characters.")
        share = self._shares.setdefault(principal.group, _Share(self._size))
        digest = hashlib.sha256(request).digest()
        entry = share.entries.get(key)
        if entry is None:
            entry = share.entries[key] = _Entry(digest, asyncio.ensure_future(make()))
            entry.answer.add_done_callback(partial(share.settle, key))
            share.shrink()
        elif entry.digest != digest:
            raise IdempotencyError("this idempotency key was used for another request.", key=key)
        await asyncio.wait({entry.answer})
        if entry.answer.cancelled():
            raise ServerError("the request was cancelled by its client.")
        return entry.answer.result()

    def cancel(self, principal: Principal, key: str) -> bool:
        """Cancel a request of the caller's group that is being made. Returns whether there was one."""
        share = self._shares.get(principal.group)
        entry = None if share is None else share.entries.get(key)
        return entry is not None and entry.answer.cancel()
