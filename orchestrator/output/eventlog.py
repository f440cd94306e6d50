"""EventLog: the events of one cell, kept so that they can be read from the start, more than once, while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from orchestrator.errors import InvalidInputError
from orchestrator.output.events import CellFinished, Event, OutputDropped
from orchestrator.output.sizes import content_size, cost


class EventLog:
    """Events in their order. A follower never makes the cell wait.

    Args:
        most_bytes: of memory. Later events are left out, and one OutputDropped stands for them; the last one is kept.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._events: list[Event] = []
        self._forgotten = 0
        self._forgotten_bytes = 0
        self._dropped = [0, 0]  # bytes, messages
        self._is_over = False
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    @property
    def bytes(self) -> int:
        """How much memory the events take."""
        return self._bytes

    @property
    def events(self) -> tuple[Event, ...]:
        """The events so far, but for those that were forgotten."""
        return tuple(self._events)

    def add(self, event: Event) -> None:
        """Append an event."""
        if not isinstance(event, CellFinished):
            size = cost(event)
            if self._bytes + size > self._most_bytes:
                self._dropped[0] += content_size(event)
                self._dropped[1] += 1
                return
            self._bytes += size
        elif any(self._dropped):
            self._events.append(OutputDropped(*self._dropped))
        self._events.append(event)
        self._wake()

    def close(self, error: BaseException | None = None) -> None:
        """Say that no event follows. Followers get the error, if there is one, after the last event."""
        self._is_over, self._error = True, error
        self._wake()

    def shorten(self) -> None:
        """Forget all events but the last one, which has the result. Their numbers stay as they are."""
        self._forgotten += max(len(self._events) - 1, 0)
        gone = (event for event in self._events[:-1] if not isinstance(event, CellFinished))
        self._forgotten_bytes += sum(map(content_size, gone))
        del self._events[:-1]
        self._bytes = 0

    async def follow(self, after: int = 0) -> AsyncGenerator[tuple[int, Event], None]:
        """Yield the events after the first ``after`` ones with their numbers, as they come, until the last one.

        One OutputDropped, with the number of the last of them, stands for events that were forgotten. Its bytes are
        those of all that were.

        Raises:
            InvalidInputError: the cell is over, and had fewer events than ``after``.
            Whatever ended the log.
        """
        at = after
        while True:
            changed = self._changed
            if at < self._forgotten:
                gap = OutputDropped(self._forgotten_bytes, self._forgotten - at)
                at = self._forgotten
                yield at, gap
            while at - self._forgotten < len(self._events):
                event = self._events[at - self._forgotten]
                at += 1
                yield at, event
            if self._is_over:
                if self._error is not None:
                    raise self._error
                if at > (total := self._forgotten + len(self._events)):
                    raise InvalidInputError(f"the cell had {total} events, and not {at}.")
                return
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
