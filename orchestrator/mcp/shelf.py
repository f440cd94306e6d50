"""Shelf: keeps things for principals, a bounded number of bytes for each and for all."""

from __future__ import annotations

from collections import Counter
from typing import Generic, TypeVar

T = TypeVar("T")


class Shelf(Generic[T]):
    """Keeps values by principal and key. When one more does not fit, the oldest goes: first the principal's own.

    Args:
        items: values of one principal.
        each: bytes of one principal.
        total: bytes of all.
    """

    def __init__(self, *, items: int, each: int, total: int) -> None:
        self._most_items, self._most_each, self._most_total = items, each, total
        self._kept: dict[tuple[str, str], tuple[T, int]] = {}  # the oldest first
        self._count: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def put(self, owner: str, key: str, value: T, size: int) -> bool:
        """Keep a value. Returns whether it is kept: one that is larger than a principal's share is not."""
        if size > min(self._most_each, self._most_total):
            return False
        self.drop(owner, key)
        while self._count[owner] >= self._most_items or self._bytes[owner] + size > self._most_each:
            self.drop(*next(known for known in self._kept if known[0] == owner))
        while self.bytes + size > self._most_total:
            self.drop(*next(iter(self._kept)))
        self._kept[owner, key] = value, size
        self._count[owner] += 1
        self._bytes[owner] += size
        return True

    def get(self, owner: str, key: str) -> T | None:
        """Return a value of this principal; None if it is not kept."""
        found = self._kept.get((owner, key))
        return None if found is None else found[0]

    def of(self, owner: str) -> list[T]:
        """Return all values of a principal, the oldest first."""
        return [value for (whose, _key), (value, _size) in self._kept.items() if whose == owner]

    def drop(self, owner: str, key: str) -> None:
        """Forget a value. Idempotent."""
        found = self._kept.pop((owner, key), None)
        if found is None:
            return
        for counter, less in ((self._count, 1), (self._bytes, found[1])):
            counter[owner] -= less
            if not counter[owner]:
                del counter[owner]

    @property
    def bytes(self) -> int:
        """What all values take."""
        return self._bytes.total()
