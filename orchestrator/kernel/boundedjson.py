"""JSON of hostile code: parsed only as far as that is cheap. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

SMALL = 16 * 1024  # bytes of JSON whose structure need not be counted first
# Commas in one message's JSON, brackets weighed. Measured: parsing and cleaning takes 11 ms for 30,000 numbers, and
# 15 ms for 6,000 objects. An honest plot of more points than that is better sent as a picture.
_MOST_ITEMS = 30_000
_WEIGHTS = ((b",", 1), (b"[", 5), (b"{", 5))
_FOUR_BYTES = tuple(bytes([lead]) for lead in range(0xF0, 0xF5))  # first bytes of characters that take four in UTF-8
_HEAD = 64  # bytes at the start of a JSON text whose marks are not weighed: a long printed text has no other marks
_ESCAPE = re.compile(rb"\\u")  # a third of the time that ``in`` takes for two bytes
_SURROGATES = (b"\\ud8", b"\\ud9", b"\\uda", b"\\udb", b"\\uD")  # how JSON may spell them instead


class MalformedError(Exception):
    """A message of a kernel that is not as the protocol says."""


def load(part: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        MalformedError: it is no JSON object, no UTF-8, nested too deep, or has too many items.
    """
    if len(part) > SMALL and _items(part) > _MOST_ITEMS:
        raise MalformedError
    try:
        value = _JSON.decode(part.decode())
    except (ValueError, RecursionError) as error:
        raise MalformedError from error
    if not isinstance(value, dict):
        raise MalformedError
    return value


def memory(part: bytes) -> int:
    """Return the bytes that a JSON text's strings take at most: one wide character widens all of its own string."""
    widest = _widest(part)
    if widest == 1 or len(part) <= SMALL:
        return widest * len(part)
    texts = part.replace(b"\\\\", b"").replace(b'\\"', b"")  # a backslash that is escaped begins no escape
    if texts.count(b'"') > 4 * _MOST_ITEMS:
        return widest * len(part)
    strings = texts.split(b'"')
    return len(part) + sum((_widest(text) - 1) * len(text) for text in strings[1::2])


def _widest(part: bytes) -> int:
    """Return the bytes that each character takes in memory, at most: 1, 2 or 4."""
    escapes = b"\\" in part and _ESCAPE.search(part) is not None
    if part.isascii() and not escapes:
        return 1
    if any(lead in part for lead in _FOUR_BYTES) or (escapes and any(mark in part for mark in _SURROGATES)):
        return 4
    return 2


def _integer(digits: str) -> int | float:
    """Parse an integer; one that 64 bits do not hold becomes a float: long ones take time that grows by the square."""
    return int(digits) if len(digits) <= 20 else float(digits)


_JSON = json.JSONDecoder(parse_int=_integer)  # made once: ``json.loads`` would make one for every part


def _items(part: bytes) -> int:
    """Weigh the structure of a JSON text. Marks inside strings do not count, unless there are very many strings."""
    marks = _marks(part[_HEAD:])
    if marks <= _MOST_ITEMS:
        return marks
    bare = part.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * _MOST_ITEMS:
        return marks
    return sum(map(_marks, bare.split(b'"')[::2]))


def _marks(part: bytes) -> int:
    """Weigh the marks in a text. It looks first whether there are any: counting takes ten times as long."""
    return sum(weight * part.count(mark) for mark, weight in _WEIGHTS if mark in part)
