"""How large plain values are: in memory, and for people. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def memory_of(value: Any) -> int:
    """Return the bytes that a JSON value takes in memory."""
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        return size + sum(sys.getsizeof(key) + memory_of(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return size + sum(map(memory_of, value))
    return size


def amount(size: int) -> str:
    """Return a number of bytes for people, such as "1.5 MiB"."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
