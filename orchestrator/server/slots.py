"""Slots: how many requests and streams each caller has open."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from orchestrator.errors import TooManyRequestsError
from orchestrator.principal import Principal


class Slots:
    """Bounds what one token may have open at once.

    Args:
        each: how many requests, and how many streams.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._taken: Counter[tuple[str, str, bool]] = Counter()

    @contextlib.contextmanager
    def taken(self, principal: Principal, *, stream: bool) -> Iterator[None]:
        """Hold a place while the context is open.

        Raises:
            TooManyRequestsError: the token has as many open as it may.
        """
        key = principal.group, principal.token_id, stream
        if self._taken[key] >= self._each:
            kind = "streams" if stream else "requests"
            raise TooManyRequestsError(
                f"this token has {self._each} {kind} open, as many as it may.",
                limit=self._each,
                remedy="Try again in a moment, or close some.",
            )
        self._taken[key] += 1
        try:
            yield
        finally:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]

    @property
    def open(self) -> int:
        """How many requests and streams are open."""
        return self._taken.total()
