"""EventStream: server-sent events, numbered so that a client that lost its connection can go on where it was."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from orchestrator.errors import CellblockError
from orchestrator.server.answers import dumps
from orchestrator.server.problems import problem
from orchestrator.server.waiting import stopped

_KEEPALIVE = 15.0  # seconds: proxies close a connection on which nothing has come for a minute
Numbered = tuple[int | None, dict[str, Any]]
"""An event as JSON, and its number; None for one that a client that comes back gets anew."""


class EventStream(StreamingResponse):
    """An answer of server-sent events."""

    media_type = "text/event-stream"


def event_stream(events: AsyncGenerator[Numbered, None]) -> EventStream:
    """Return an answer that sends each event as it comes. An error is its last event, of type "problem"."""
    return EventStream(_lines(events), headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def _lines(events: AsyncGenerator[Numbered, None]) -> AsyncIterator[bytes]:
    yield b": cellblock\n\n"  # the head goes out at once: a client sees that it is connected
    async with contextlib.aclosing(events):
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=_KEEPALIVE)
                if not done:
                    yield b": still there\n\n"
                    continue
                event = coming.result()
                if event is None:
                    return
                yield _line(*event)
                coming = asyncio.ensure_future(anext(events, None))
        except CellblockError as error:
            yield _line(None, {"type": "problem", "problem": problem(error)})
        finally:
            await stopped(coming)


def _line(number: int | None, event: dict[str, Any]) -> bytes:
    head = b"" if number is None else b"id: %d\n" % number
    return b"%sevent: %s\ndata: %s\n\n" % (head, event["type"].encode(), dumps(event))


def last_event_id(value: str | None) -> int:
    """Return how many events a client has seen, from its ``Last-Event-ID``; 0 if it is missing or no number."""
    return int(value) if value is not None and value.isascii() and value.isdigit() and len(value) < 10 else 0
