"""Estimates how many tokens a model pays for a text, and shortens texts to a budget. Pure.

No tokenizer is at hand, and each model has its own, so the estimate errs on the high side.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_PIECE = re.compile(r" ?[A-Z]?[a-z]{1,4}|[A-Z]{1,2}|[0-9]{1,3}|\s+|[\x21-\x7e]")
_LEAST = 200  # characters that a text is shortened to at most


def tokens(text: str) -> int:
    """Return about how many tokens a text has: pieces of words and numbers, and one for two bytes beyond ASCII."""
    beyond = sum(len(part.encode("utf-8", "replace")) for part in re.findall(r"[^\x00-\x7f]+", text))
    return sum(1 for _piece in _PIECE.finditer(text)) + (beyond + 1) // 2


def fitted(render: Callable[[int], str], budget: int) -> str:
    """Return what ``render`` makes within a number of characters, such that it has at most ``budget`` tokens."""
    limit = budget * 5
    while True:
        text = render(limit)
        cost = tokens(text)
        if cost <= budget or limit <= _LEAST:
            return text
        limit = max(_LEAST, int(min(limit, len(text)) * budget / cost * 0.95))


def head(text: str, limit: int) -> str:
    """Return at most ``limit`` characters: the beginning, and how many are missing."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}\n[... {len(text) - limit:,} more characters]"
