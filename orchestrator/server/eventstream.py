"""EventStream: server-sent events, numbered so that a client that lost its connection can go on where it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from orchestrator.errors import CellblockError
from orchestrator.server.answers import dumps
from orchestrator.server.problems import problem
from orchestrator.server.readahead import ReadAhead

_TOGETHER = 16 * 1024  # bytes of events that go out in one piece, if they come at once
_KEEPALIVE = 15.0  # seconds: proxies close a connection on which nothing has come for a minute
Numbered = tuple[int | None, dict[str, Any]]
"""An event as JSON, and its number; None for one that a client that comes back gets anew."""


class EventStream(StreamingResponse):
    """An answer of server-sent events."""

    media_type = "text/event-stream"


def event_stream(events: AsyncGenerator[Numbered, None]) -> EventStream:
    """Return an answer that sends events as they come, and those that come at once together.

    An error is its last event, of type "problem".
    """
    return EventStream(_lines(events), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def _lines(events: AsyncGenerator[Numbered, None]) -> AsyncIterator[bytes]:
    yield b": cellblock\n\n"  # the head goes out at once: a client sees that it is connected
    async with ReadAhead(events) as ahead:
        try:
            while True:
                if not await ahead.come(_KEEPALIVE):
                    yield b": still there\n\n"
                    continue
                if not (come := ahead.take()):
                    return
                lines: list[bytes] = []
                for event in come:
                    lines.append(_line(*event))
                    if sum(map(len, lines)) >= _TOGETHER:
                        yield b"".join(lines)
                        lines.clear()
                        await asyncio.sleep(0)  # JSON of 10 MB takes 30 ms: others have their turn
                if lines:
                    yield b"".join(lines)
        except CellblockError as error:
            yield _line(None, {"type": "problem", "problem": problem(error)})


def _line(number: int | None, event: dict[str, Any]) -> bytes:
    head = b"" if number is None else b"id: %d\n" % number
    return b"%sevent: %s\ndata: %s\n\n" % (head, event["type"].encode(), dumps(event))


def last_event_id(value: str | None) -> int:
    """Return how many events a client has seen, from its ``Last-Event-ID``; 0 if it is missing or no number."""
    return int(value) if value is not None and value.isascii() and value.isdigit() and len(value) < 10 else 0
