"""Kept: what has ended and its caller may come back to, as much as fits. A group that floods loses its own. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Kept(Generic[T]):
    """Items with their sizes, each of a group. Beyond the bounds, the group that keeps most loses its oldest.

    Args:
        most: items.
        most_bytes: of all items.
    """

    def __init__(self, most: int, most_bytes: int) -> None:
        self._most, self._most_bytes = most, most_bytes
        self._groups: dict[str, dict[T, int]] = {}  # the oldest first
        self._counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def add(self, item: T, group: str, size: int) -> list[T]:
        """Keep an item that is not kept yet. Returns those that do not fit any longer; it may be one of them."""
        self._groups.setdefault(group, {})[item] = size
        self._counts[group] += 1
        self._bytes[group] += size
        forgotten = []
        while self._counts.total() > self._most:
            forgotten.append(self._forget_oldest(self._counts))
        while self._bytes.total() > self._most_bytes:
            forgotten.append(self._forget_oldest(self._bytes))
        return forgotten

    def _forget_oldest(self, shares: Counter[str]) -> T:
        """Forget the oldest item of the group with the largest share."""
        group = max(shares, key=shares.__getitem__)
        items = self._groups[group]
        item = next(iter(items))
        self._bytes[group] -= items.pop(item)
        self._counts[group] -= 1
        if not items:
            del self._groups[group], self._counts[group], self._bytes[group]
        return item
