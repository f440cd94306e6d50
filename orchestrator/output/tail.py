"""The newest events of a cell whose output exceeds a limit. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.output.events import Output, StreamOutput
from orchestrator.output.share import Share

_SMALL_PIECE = 4096  # characters; a shorter piece is joined with the next one: each costs as an event


@dataclass(slots=True)
class Waiting:
    """An event of the tail.

    Attributes:
        number: see ``Shown``.
        streamed: whether the consumer received it before it became part of the tail.
        messages: how many messages it consists of.
        missed: whether a part of it was left out, and counted as such.
    """

    event: Output
    number: int
    streamed: bool
    messages: int = 1
    missed: bool = False


class Tail:
    """The events of the tail, oldest first, and what they count against the limits (``share``).

    Attributes:
        runs: neighbouring pieces of one stream, each an output of its own.
    """

    def __init__(self, most_joined: int) -> None:
        """``most_joined``: messages that are joined to one piece at most; a piece is left out as a whole."""
        self.share = Share()
        self._most_joined = most_joined
        self._events: deque[Waiting] = deque()
        self.runs = 0

    def __bool__(self) -> bool:
        return bool(self._events)

    @property
    def first(self) -> Output | None:
        """The oldest event; None where there is none."""
        return self._events[0].event if self._events else None

    @property
    def events(self) -> Iterator[Output]:
        """The events, oldest first."""
        return (waiting.event for waiting in self._events)

    def add(self, waiting: Waiting) -> None:
        """Append an event."""
        self.runs += _begins(waiting, self._events[-1] if self._events else None)
        self._events.append(waiting)
        self._count(waiting, 1)

    def join(self, waiting: Waiting) -> None:
        """Append an event, joined with the one before it where both are short pieces of one stream."""
        last = self._events[-1] if self._events else None
        if last is not None and (text := self._joined(last, waiting.event)) is not None:
            self._count(self._events.pop(), -1)
            self.runs -= _begins(last, self._events[-1] if self._events else None)
            waiting = Waiting(text, 0, False, last.messages + 1, last.missed)
        self.add(waiting)

    def pop(self) -> Waiting:
        """Remove and return the oldest event."""
        waiting = self._events.popleft()
        self.runs -= _begins(waiting, self._events[0] if self._events else None)
        self._count(waiting, -1)
        return waiting

    def put_back(self, waiting: Waiting) -> None:
        """Make an event the oldest one."""
        self.runs += _begins(waiting, self._events[0] if self._events else None)
        self._events.appendleft(waiting)
        self._count(waiting, 1)

    def drain(self) -> Iterator[Waiting]:
        """Yield the events, oldest first, and remove each."""
        while self._events:
            yield self.pop()

    def _joined(self, last: Waiting, event: Output) -> StreamOutput | None:
        piece = last.event
        if last.streamed or last.messages > self._most_joined or not isinstance(piece, StreamOutput):
            return None
        if not isinstance(event, StreamOutput) or event.name != piece.name or len(piece.text) > _SMALL_PIECE:
            return None
        return StreamOutput(event.name, piece.text + event.text)

    def _count(self, waiting: Waiting, sign: int) -> None:
        self.share.count(waiting.event, sign)
        self.share.messages += sign * (waiting.messages - 1)


def _begins(waiting: Waiting, neighbour: Waiting | None) -> bool:
    """Return whether an event is a run of its own beside its neighbour: text, of another stream."""
    event, beside = waiting.event, None if neighbour is None else neighbour.event
    if not isinstance(event, StreamOutput):
        return False
    return not isinstance(beside, StreamOutput) or beside.name != event.name
