"""Mime bundles in a kernel's replies. A client's page shows them like outputs, so the policy's types hold. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_TEXT = "text/plain"


def allowed(content: Any, passes: Callable[[str], bool]) -> Any:
    """Return a reply's content. Of each mime bundle, an object named "data", it has the types that pass, and text."""
    if isinstance(content, list):
        return [allowed(item, passes) for item in content]
    if not isinstance(content, dict):
        return content
    return {
        name: {mime: item for mime, item in value.items() if mime == _TEXT or passes(mime)}
        if name == "data" and isinstance(value, dict)
        else allowed(value, passes)
        for name, value in content.items()
    }
