"""Idempotency: a request that comes again with the same key is answered as it was, and not done again."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from orchestrator.errors import (
    CellblockError,
    IdempotencyError,
    InvalidInputError,
    NodeLeaseError,
    NotOwnerError,
    ServerError,
    StoreError,
    TooManyRequestsError,
)
from orchestrator.limits import MIB
from orchestrator.principal import Principal

_KEPT = 24 * 3600.0  # seconds
_MOST = 10_000  # answers of one group
_MOST_BYTES = 32 * MIB  # of one group's answers; the oldest are forgotten first
_ENTRY = 1000  # bytes that an answer counts beside its content: its key, and the objects around it
_MOST_AT_ONCE = 1000  # requests of one group that are being made; their clients may have gone
_MOST_BYTES_AT_ONCE = 64 * MIB  # of these requests
_LONGEST = 255  # characters of a key


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer that is kept.

    Attributes:
        failure: what is raised in place of the content.
        size: bytes.
        at: when it was made.
    """

    digest: bytes
    content: bytes
    failure: CellblockError | None
    size: int
    at: float

    def given(self) -> bytes:
        """Return the content, or raise the failure."""
        if self.failure is not None:
            raise _bare(self.failure)
        return self.content


@dataclass(frozen=True, slots=True)
class _Request:
    """A request that is being made, and its size in bytes."""

    digest: bytes
    size: int
    answer: asyncio.Future[bytes]


class _Share:
    """The requests of one group, bounded on their own: no group makes another one's answers be forgotten."""

    def __init__(self) -> None:
        self.requests: dict[str, _Request] = {}
        self.answers: OrderedDict[str, _Answer] = OrderedDict()
        self._bytes = 0
        self._bytes_at_once = 0

    def begin(self, key: str, request: _Request) -> None:
        self.requests[key] = request
        self._bytes_at_once += request.size
        request.answer.add_done_callback(partial(self._settle, key, request))

    def refuse_many(self, size: int) -> None:
        """Refuse a request for which there is no room.

        Raises:
            TooManyRequestsError: it is one too many, or too large beside the others.
        """
        if len(self.requests) >= _MOST_AT_ONCE or (self.requests and self._bytes_at_once + size > _MOST_BYTES_AT_ONCE):
            raise TooManyRequestsError(
                f"the group has {len(self.requests)} requests with idempotency keys that are not answered yet.",
                limit=_MOST_AT_ONCE,
                remedy="Try again in a moment, or cancel some.",
            )

    def shrink(self) -> None:
        """Forget the oldest answers beyond the bounds."""
        oldest = time.monotonic() - _KEPT
        while self.answers:
            answer = next(iter(self.answers.values()))
            if len(self.answers) <= _MOST and self._bytes <= _MOST_BYTES and answer.at >= oldest:
                return
            self.answers.popitem(last=False)
            self._bytes -= answer.size

    def _settle(self, key: str, request: _Request, made: asyncio.Future[bytes]) -> None:
        """Keep an answer, or forget a request that failed."""
        del self.requests[key]
        self._bytes_at_once -= request.size
        if made.cancelled():
            return
        error = made.exception()
        if error is None:
            self._keep(key, request, made.result(), None, len(made.result()))
        elif isinstance(error, CellblockError) and _has_run(error):
            result = error.result if isinstance(error, StoreError) else None
            self._keep(key, request, b"", _bare(error), 0 if result is None else result.kept_bytes)

    def _keep(self, key: str, request: _Request, content: bytes, failure: CellblockError | None, size: int) -> None:
        answer = _Answer(request.digest, content, failure, _ENTRY + size, time.monotonic())
        self.answers[key] = answer
        self._bytes += answer.size
        self.shrink()


def _bare(error: CellblockError) -> CellblockError:
    """Return an error without the frames that have raised it: these hold the request, and grow with each raise."""
    bare = error.__class__.__new__(error.__class__)
    vars(bare).update(vars(error))
    bare.args = error.args
    return bare


def _has_run(error: CellblockError) -> bool:
    """Return whether a cell has, or may have, run although its request failed."""
    if isinstance(error, NotOwnerError):
        return not error.undone
    return isinstance(error, NodeLeaseError) or (isinstance(error, StoreError) and error.result is not None)


class Idempotency:
    """The answers of one server, by group and key. They are bytes, so that what they hold can be counted."""

    def __init__(self) -> None:
        self._shares: dict[str, _Share] = {}

    async def once(
        self, principal: Principal, key: str | None, request: bytes, make: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Return the answer of a request, made once for each key. It is made to its end, also if its client goes.

        Args:
            key: None: make it, and keep nothing.
            request: what the request asks for.

        Raises:
            IdempotencyError: the key came with another request before.
            InvalidInputError: the key has more than 255 characters.
            TooManyRequestsError: the group has too many requests with keys that are not answered yet.
            ServerError: the client cancelled the request.
            Whatever ``make`` raises. A request that failed is made again when it comes again, unless its cell has run,
                and only its end could not be kept.
        """
        if key is None:
            return await make()
        if not 0 < len(key) <= _LONGEST:
            raise InvalidInputError(f"an idempotency key has 1 to {_LONGEST} characters.")
        share = self._shares.setdefault(principal.group, _Share())
        share.shrink()
        digest = hashlib.sha256(request).digest()
        known = share.requests.get(key) or share.answers.get(key)
        if known is None:
            share.refuse_many(len(request))
            known = _Request(digest, len(request), asyncio.ensure_future(make()))
            share.begin(key, known)
        elif known.digest != digest:
            raise IdempotencyError("this idempotency key was used for another request.", key=key)
        if isinstance(known, _Answer):
            return known.given()
        await asyncio.wait({known.answer})
        if known.answer.cancelled():
            raise ServerError("the request was cancelled by its client.")
        return known.answer.result()

    def cancel(self, principal: Principal, key: str) -> bool:
        """Cancel a request of the caller's group that is being made. Returns whether there was one."""
        share = self._shares.get(principal.group)
        request = None if share is None else share.requests.get(key)
        return request is not None and request.answer.cancel()
