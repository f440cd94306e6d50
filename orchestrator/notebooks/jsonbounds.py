"""Bounds on JSON of files and sandboxes: what is deep, or has many parts, is costly to copy and check. Pure."""

from __future__ import annotations

import re
from typing import Any

DEEPEST = 100  # levels
_MOST_PARTS = 400_000  # values: each takes some 100 bytes, four times while a notebook is read
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def is_deep(value: Any) -> bool:
    """Return whether a value has more than 100 levels."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for each in level
            if isinstance(each, dict | list | tuple)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def has_many_parts(content: bytes) -> bool:
    """Return whether a JSON text has so many values that reading them would take too much memory."""
    return _marks(content) > _MOST_PARTS and _marks(_STRING.sub(b"", content)) > _MOST_PARTS


def _marks(content: bytes) -> int:
    return sum(content.count(mark) for mark in (b",", b"[", b"{"))
