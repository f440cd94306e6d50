"""Idempotency: a request that comes again with the same key is answered as it was, and not done again."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orchestrator.errors import IdempotencyError, InvalidInputError
from orchestrator.principal import Principal

T = TypeVar("T")
_KEPT = 24 * 3600.0  # seconds
_MOST = 10_000
_MOST_BYTES = 64 * 1024 * 1024  # of all answers; the oldest are forgotten first
_LONGEST = 255  # characters of a key


@dataclass(slots=True)
class _Entry(Generic[T]):
    digest: bytes
    answer: asyncio.Future[T]
    at: float = field(default_factory=time.monotonic)


class Idempotency(Generic[T]):
    """The answers of one server, by group and key.

    Args:
        size: returns how many bytes an answer takes.
    """

    def __init__(self, size: Callable[[T], int]) -> None:
        self._size = size
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, str], _Entry[T]] = OrderedDict()

    async def once(self, principal: Principal, key: str | None, request: bytes, make: Callable[[], Awaitable[T]]) -> T:
        """Return the answer of a request, made once for each key. It is made to its end, also if its client goes.

        Args:
            key: None: make it, and keep nothing.
            request: what the request asks for.

        Raises:
            IdempotencyError: the key came with another request before.
            InvalidInputError: the key has more than 255 characters.
            Whatever ``make`` raises. A request that failed is made again when it comes again.
        """
        if key is None:
            return await make()
        if not 0 < len(key) <= _LONGEST:
            raise InvalidInputError(f"an idempotency key has 1 to {_LONGEST} characters.")
        place, digest = (principal.group, key), hashlib.sha256(request).digest()
        entry = self._entries.get(place)
        if entry is None:
            entry = self._entries[place] = _Entry(digest, asyncio.ensure_future(make()))
            entry.answer.add_done_callback(lambda answer: self._settle(place, answer))
            self._shrink()
        elif entry.digest != digest:
            raise IdempotencyError("this idempotency key was used for another request.", key=key)
        return await asyncio.shield(entry.answer)

    def _settle(self, place: tuple[str, str], answer: asyncio.Future[T]) -> None:
        if answer.cancelled() or answer.exception() is not None:
            self._entries.pop(place, None)
        else:
            self._bytes += self._size(answer.result())
            self._shrink()

    def _shrink(self) -> None:
        oldest = time.monotonic() - _KEPT
        for place, entry in list(self._entries.items()):
            if len(self._entries) <= _MOST and self._bytes <= _MOST_BYTES and entry.at >= oldest:
                return
            if entry.answer.done():
                del self._entries[place]
                self._bytes -= self._size(entry.answer.result())
