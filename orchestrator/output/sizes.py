"""How large events are: in memory, which the limits count, and as people count them. Pure."""

from __future__ import annotations

import sys

from orchestrator.output.amounts import memory_of
from orchestrator.output.events import (
    CommMessage,
    DisplayData,
    ErrorOutput,
    ExecuteResult,
    OutputEvent,
    StreamOutput,
    UpdateDisplayData,
)

EVENT = 200  # bytes that an event takes beside its content
_SHORT = 100  # characters; above, the memory of a text shows how wide its characters are


def cost(event: OutputEvent) -> int:
    """Return the bytes that an event takes in memory."""
    match event:
        case StreamOutput():
            return EVENT + sys.getsizeof(event.text)
        case DisplayData() | UpdateDisplayData() | ExecuteResult():
            display_id = getattr(event, "display_id", None) or ""
            return EVENT + memory_of(event.data) + memory_of(event.metadata) + len(display_id)
        case ErrorOutput():
            return EVENT + memory_of([event.ename, event.evalue, *event.traceback])
        case CommMessage():
            return EVENT + memory_of(event.data) + memory_of(event.metadata) + sum(map(len, event.buffers))
    return EVENT


def content_size(event: OutputEvent) -> int:
    """Return the bytes of an event's content as people count them: text in UTF-8."""
    match event:
        case StreamOutput():
            return len(event.text) if event.text.isascii() else len(event.text.encode())
        case DisplayData() | UpdateDisplayData() | ExecuteResult():
            return sum(len(item) if isinstance(item, str) else memory_of(item) for item in event.data.values())
        case ErrorOutput():
            return sum(map(len, (event.ename, event.evalue, *event.traceback)))
    return 0


def width(text: str) -> int:
    """Return the bytes that each character of a text takes in memory: 1, 2 or 4."""
    if text.isascii():
        return 1
    if len(text) < _SHORT:
        widest = ord(max(text))
        return 1 if widest < 0x100 else 2 if widest < 0x10000 else 4
    ratio = sys.getsizeof(text) / len(text)
    return 4 if ratio > 3.9 else 2 if ratio > 1.9 else 1
