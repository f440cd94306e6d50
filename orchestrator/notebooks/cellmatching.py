"""Finds cells again that have no common ids: equal ones, and edited ones between them. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

Content = tuple[str, str]
"""A cell's type and source."""


def matched(then: Sequence[Content], now: Sequence[Content]) -> dict[int, int]:
    """Return the earlier number of each cell that is found again, by its number now."""
    found: dict[int, int] = {}
    for kind, a, a_end, b, b_end in difflib.SequenceMatcher(None, then, now, autojunk=False).get_opcodes():
        if kind == "equal" or (kind == "replace" and a_end - a == b_end - b):
            found |= {b + number: a + number for number in range(b_end - b)}
    return found
