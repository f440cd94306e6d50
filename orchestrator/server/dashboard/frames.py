"""Frames: HTML of cells that waits to be fetched once, as a document that can do nothing."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque

from orchestrator.errors import InvalidInputError

LARGEST = 2 * 1024 * 1024  # bytes of one document
_WAITS = 30.0  # seconds until a document that nobody fetches is dropped
_EACH = 16  # documents of one caller that wait; one more drops its oldest
_MOST = 128  # of all callers


class Frames:
    """Documents, each under a secret name that works once. A frame cannot send the token that its page has."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, tuple[float, str, bytes]] = OrderedDict()
        self._of: dict[str, deque[str]] = {}

    def add(self, caller: str, document: bytes) -> str:
        """Keep a document for 30 s, and return its name.

        Raises:
            InvalidInputError: it is larger than 2 MiB.
        """
        if len(document) > LARGEST:
            raise InvalidInputError(f"a frame has at most {LARGEST} bytes.")
        self._drop_old()
        mine = self._of.get(caller)
        if mine is not None and len(mine) >= _EACH:
            self._remove(mine[0])
        while len(self._waiting) >= _MOST:
            self._remove(next(iter(self._waiting)))
        name = secrets.token_hex(16)
        self._waiting[name] = time.monotonic(), caller, document
        self._of.setdefault(caller, deque()).append(name)
        return name

    def take(self, name: str) -> bytes | None:
        """Return a document, and forget it; None if nothing waits under this name."""
        self._drop_old()
        return self._remove(name)

    def _drop_old(self) -> None:
        oldest = time.monotonic() - _WAITS
        while self._waiting and next(iter(self._waiting.values()))[0] <= oldest:
            self._remove(next(iter(self._waiting)))

    def _remove(self, name: str) -> bytes | None:
        _, caller, document = self._waiting.pop(name, (0.0, "", None))
        if document is not None:
            mine = self._of[caller]
            mine.remove(name)
            if not mine:
                del self._of[caller]
        return document
