"""Folds a cell's events into outputs, as a notebook shows them, and keeps head and tail of what is too much. Pure.

While everything fits, all of it is kept. The event that no longer fits splits what is there: the first third of the
limit is the head and stays, what came after it is the tail, and from then on the oldest of the tail makes room for
what comes. So an agent sees how its cell began, how it ended, and in between how much was left out.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.limits import OutputLimits
from orchestrator.output.events import (
    ClearOutput,
    CommMessage,
    DisplayData,
    ErrorOutput,
    ExecuteResult,
    Output,
    OutputDropped,
    OutputEvent,
    StreamOutput,
    Truncation,
    UpdateDisplayData,
    memory_of,
)
from orchestrator.output.streamtext import StreamText

_EVENT = 200  # bytes that an event takes beside its content
_LARGEST_PIECE = 1024 * 1024  # bytes of one event, once output is being left out; what is larger is left out unread
# Bytes of one event that is read however low the limit: a kernel's longest piece of text, were it all line feeds.
_ALWAYS_READ = 576 * 1024
_SMALL_PIECE = 4096  # characters; a shorter piece in the tail is joined with the next: each costs as an event
_TOO_LARGE = "max_output_size_mb"
_TOO_LARGE_A_MESSAGE = "message_size"
_SHORT = 100  # characters; the memory of a longer text tells how wide its characters are

StreamName = Literal["stdout", "stderr"]


@dataclass(slots=True)
class _Stream:
    """What makes a stream's characters dear: ``stdout`` joins a copy of several runs, a wide character widens all."""

    width: int = 1  # bytes of a character
    runs: int = 0

    @property
    def price(self) -> int:
        return self.width * (2 if self.runs > 1 else 1)


@dataclass(slots=True)
class _Share:
    """What the head, or the tail, holds."""

    messages: int = 0
    displays: int = 0
    other: int = 0  # bytes of all that is no stream's text
    characters: dict[StreamName, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})

    def count(self, event: Output, sign: int = 1) -> None:
        self.messages += sign
        self.displays += sign * isinstance(event, DisplayData | ExecuteResult)
        if isinstance(event, StreamOutput):
            self.other += sign * _EVENT
            self.characters[event.name] += sign * len(event.text)
        else:
            self.other += sign * cost(event)


@dataclass(slots=True)
class _Run:
    """Neighbouring pieces of one stream."""

    name: StreamName
    text: StreamText = field(default_factory=StreamText)


@dataclass(slots=True)
class _Shown:
    """An output, and when its display's id was shown or updated last before it."""

    output: DisplayData | ExecuteResult | ErrorOutput
    number: int


@dataclass(slots=True)
class _Waiting:
    """An event of the tail."""

    event: Output
    number: int
    streamed: bool  # whether the consumer had it before it became the tail's
    messages: int = 1  # that it is made of
    missed: bool = False  # whether a part of it was left out, and counted so


class OutputCollector:
    """One cell's outputs."""

    def __init__(self, limits: OutputLimits) -> None:
        self._limits = limits
        self.bytes_seen = 0
        self.messages_seen = 0
        self._reset()

    def _reset(self) -> None:
        self._clear_at_next = False
        self._outputs: list[_Run | _Shown] = []
        self._tail: deque[_Waiting] = deque()
        self._in_head, self._in_tail = _Share(), _Share()
        self._streams: dict[StreamName, _Stream] = {"stdout": _Stream(), "stderr": _Stream()}
        self._last: str | None = None  # the stream of the last event, if it was one's
        self._numbers: dict[str, int] = {}  # how often each display id was shown or updated
        self._updates: dict[str, tuple[int, UpdateDisplayData]] = {}
        self._updates_cost = 0
        self._split = False
        self._dropped_bytes = self._dropped_messages = self._dropped_unseen = 0
        self._missed_bytes = self._missed_messages = 0
        self._reason = ""
        self._marked = False

    @property
    def is_past_limit(self) -> bool:
        """Whether something was left out here."""
        return bool(self._dropped_bytes or self._dropped_messages)

    @property
    def truncation(self) -> Truncation | None:
        """What is missing from the outputs; None while nothing is."""
        if not self.is_past_limit and not self._missed_messages:
            return None
        size, messages = self._dropped_bytes + self._missed_bytes, self._dropped_messages + self._missed_messages
        return Truncation(self._reason, self._limits.bytes, size, messages)

    def wants(self, size: int) -> bool:
        """Whether an event that takes ``size`` bytes at most is worth reading."""
        largest = self._limits.bytes * 2 // 3
        largest = min(largest, _LARGEST_PIECE) if self._split else max(largest, self._room())
        return size <= max(largest, _ALWAYS_READ)

    def refuse(self, size: int) -> None:
        """Leave out an event of ``size`` bytes that was not read."""
        self.bytes_seen += size
        self.messages_seen += 1
        self._part(_TOO_LARGE)
        self._drop(size, seen=False)

    def miss(self, size: int) -> None:
        """Count what the kernel left out of the event that was added last. The event itself says where."""
        self.bytes_seen += size
        self._missed_bytes += size
        self._missed_messages += 1
        self._reason = self._reason or _TOO_LARGE_A_MESSAGE

    def add(self, event: OutputEvent) -> OutputEvent | None:
        """Take an event.

        Returns:
            What the consumer is to have now: the event; its beginning, where the limit is passed within it; or None.
            The rest is left out, or ``finish`` has it.
        """
        self.bytes_seen += (size := _size(event))
        self.messages_seen += 1
        match event:
            case ClearOutput(wait=True):
                self._clear_at_next = True
                return event
            case ClearOutput():
                self._reset()
                return event
            case UpdateDisplayData():
                return event if self._update(event, size) else None
            case CommMessage():
                return event if self.messages_seen <= self._limits.messages else None
            case OutputDropped():
                raise AssertionError("unreachable: the collector makes these, and gets none")
        if self._clear_at_next:
            self._reset()
        return self._keep(event)

    def finish(self) -> Iterator[OutputEvent]:
        """End the collecting. Yields what the consumer has not had: how much was left out, and the tail."""
        if self.is_past_limit and not self._marked:
            self._marked = True
            self._append(self._mark(), 0)
            if self._dropped_unseen:
                yield OutputDropped(self._dropped_bytes, self._dropped_messages)
        while self._tail:
            waiting = self._tail.popleft()
            self._append(waiting.event, waiting.number)
            if not waiting.streamed:
                yield waiting.event

    def outputs(self) -> tuple[Output, ...]:
        """Return the outputs. To be called once, after ``finish``."""
        outputs, self._outputs = self._outputs, []
        return tuple(map(self._final, outputs))

    def _keep(self, event: Output) -> Output | None:
        number, self._last, last = 0, None, self._last
        if isinstance(event, StreamOutput):
            stream = self._streams[event.name]
            stream.runs += last != event.name
            stream.width = max(stream.width, _width(event.text))
            self._last = event.name
        elif isinstance(event, DisplayData) and event.display_id is not None:
            number = self._numbers[event.display_id] = self._numbers.get(event.display_id, 0) + 1
        if self._split:
            self._wait(self._joined(_Waiting(event, number, streamed=False)))
            self._fit()
            return None
        reason = self._excess_with(event)
        if not reason:
            self._append(event, number)
            return event
        first, rest = self._divided(event)
        if first is not None:
            self._append(first, number)
        self._part(reason)
        if rest is not None:
            self._wait(_Waiting(rest, number, streamed=False))
            self._fit()
        return first

    def _divided(self, event: Output) -> tuple[Output | None, Output | None]:
        """Divide the event at which the limit is passed into what is still of the head, and the rest."""
        first = self._head_part(event)
        if not isinstance(event, StreamOutput) or not isinstance(first, StreamOutput):
            return None, event
        rest = event.text[len(first.text) :]
        return first, StreamOutput(event.name, rest) if rest else None

    def _append(self, event: Output, number: int) -> None:
        """Put an event at the end of the outputs."""
        self._in_head.count(event)
        if not isinstance(event, StreamOutput):
            self._outputs.append(_Shown(event, number))
            return
        run = self._run_of(event)
        if run is not None:
            self._in_head.other -= _EVENT
        else:
            run = _Run(event.name)
            self._outputs.append(run)
        before = run.text.size
        run.text.add(event.text)
        self._in_head.characters[event.name] += run.text.size - before - len(event.text)  # a return overwrites

    def _run_of(self, event: Output) -> _Run | None:
        """The run at the outputs' end, where the event is more of it."""
        run = self._outputs[-1] if self._outputs else None
        return run if isinstance(run, _Run) and isinstance(event, StreamOutput) and run.name == event.name else None

    def _joined(self, waiting: _Waiting) -> _Waiting:
        """Join a short piece at the tail's end with the next one of its stream."""
        last, event = self._tail[-1] if self._tail else waiting, waiting.event
        if last is waiting or last.streamed or not isinstance(last.event, StreamOutput):
            return waiting
        if last.messages > self._limits.messages // 16:  # it is left out as a whole
            return waiting
        if not isinstance(event, StreamOutput) or event.name != last.event.name or len(last.event.text) > _SMALL_PIECE:
            return waiting
        self._forget(self._tail.pop())
        text = last.event.text + event.text
        return _Waiting(StreamOutput(event.name, text), 0, False, last.messages + 1, last.missed)

    def _wait(self, waiting: _Waiting) -> None:
        self._tail.append(waiting)
        self._in_tail.count(waiting.event)
        self._in_tail.messages += waiting.messages - 1

    def _forget(self, waiting: _Waiting) -> None:
        self._in_tail.count(waiting.event, -1)
        self._in_tail.messages -= waiting.messages - 1

    def _cost_of(self, share: _Share) -> int:
        return share.other + sum(self._streams[name].price * count for name, count in share.characters.items())

    def _room(self) -> int:
        return self._limits.bytes - self._updates_cost - self._cost_of(self._in_head) - self._cost_of(self._in_tail)

    def _excess(self) -> str:
        """Name the limit that is exceeded; "" for none."""
        if self._room() < 0:
            return _TOO_LARGE
        if self._in_head.messages + self._in_tail.messages > self._limits.messages:
            return "output.messages"
        return "output.displays" if self._in_head.displays + self._in_tail.displays > self._limits.displays else ""

    def _excess_with(self, event: Output) -> str:
        """Name the limit that would be exceeded with one event more."""
        self._in_head.count(event)
        reason = self._excess()
        self._in_head.count(event, -1)
        return reason

    def _part(self, reason: str) -> None:
        """Split what is there into head and tail, unless that was done, or there is no reason to."""
        if reason and not self._split:
            self._split, self._reason = True, self._reason or reason
            self._shorten_head()
            self._fit()

    def _shorten_head(self) -> None:
        """Move all but the head's first part to the tail."""
        outputs, self._outputs = self._outputs, []
        counted, self._in_head = self._in_head, _Share()
        later, self._tail, self._in_tail = self._tail, deque(), _Share()
        full = False
        for event, number in _events(outputs):
            kept = None if full else self._head_part(event)
            full = kept is not event
            if kept is not None:
                self._append(kept, number)
            if kept is None:
                self._wait(_Waiting(event, number, streamed=True))
            elif full and isinstance(event, StreamOutput) and isinstance(kept, StreamOutput):
                rest = event.text[len(kept.text) :]
                self._wait(_Waiting(StreamOutput(event.name, rest), number, streamed=True))
        for waiting in later:
            self._wait(waiting)
        # A stream's messages were joined, and are fewer by now; the head is to have had its half of them.
        self._in_head.messages = min(counted.messages, self._limits.messages // 2)

    def _head_part(self, event: Output) -> Output | None:
        """Return as much of an event as is to stay in the head."""
        limits, head = self._limits, self._in_head
        room = limits.bytes // 3 - self._cost_of(head) - (0 if self._run_of(event) else _EVENT)
        if room <= 0 or head.messages >= limits.messages // 2:
            return None
        if isinstance(event, StreamOutput):
            most = room // self._streams[event.name].price
            return event if len(event.text) <= most else StreamOutput(event.name, event.text[:most])
        many = isinstance(event, DisplayData | ExecuteResult) and head.displays >= limits.displays // 2
        return None if many or cost(event) > room else event

    def _fit(self) -> None:
        """Leave out the oldest of the tail until all fits."""
        if self._cost_of(self._in_head) > self._limits.bytes * 2 // 3:  # one wide character has widened all of it
            self._shorten_head()
        while self._tail and self._excess():
            self._leave_out_oldest()

    def _leave_out_oldest(self) -> None:
        too_large = self._excess() == _TOO_LARGE
        waiting = self._tail.popleft()
        self._forget(waiting)
        event = waiting.event
        if isinstance(event, StreamOutput) and too_large:
            fitting = (self._room() - _EVENT) // self._streams[event.name].price
            if 0 < fitting < len(event.text):  # its end may stay
                kept, event = event.text[-fitting:], StreamOutput(event.name, event.text[:-fitting])
                self._tail.appendleft(_Waiting(StreamOutput(event.name, kept), 0, waiting.streamed, missed=True))
                self._in_tail.count(self._tail[0].event)
        self._drop(_size(event), seen=waiting.streamed, messages=waiting.messages - waiting.missed)

    def _drop(self, size: int, *, seen: bool, messages: int = 1) -> None:
        self._dropped_bytes += size
        self._dropped_messages += messages
        self._dropped_unseen += not seen

    def _update(self, event: UpdateDisplayData, size: int) -> bool:
        """Give every display of this id so far new content; it takes the room of the update before it."""
        if event.display_id not in self._numbers:
            return not self._split
        before = self._updates.get(event.display_id)
        more = cost(event) - (cost(before[1]) if before else 0)
        while self._room() < more and self._tail:
            self._leave_out_oldest()
        if self._room() < more:
            self._part(_TOO_LARGE)
            self._drop(size, seen=False)
            return False
        self._updates_cost += more
        self._numbers[event.display_id] += 1
        self._updates[event.display_id] = self._numbers[event.display_id], event
        return not self._split

    def _final(self, output: _Run | _Shown) -> Output:
        if isinstance(output, _Run):
            return StreamOutput(output.name, "".join(output.text.pieces()))
        shown = output.output
        if not isinstance(shown, DisplayData) or shown.display_id not in self._updates:
            return shown
        number, update = self._updates[shown.display_id]
        return shown if number < output.number else DisplayData(update.data, update.metadata, update.display_id)

    def _mark(self) -> StreamOutput:
        """Make what stands in the outputs where some were left out."""
        last, first = self._outputs[-1] if self._outputs else None, self._tail[0].event if self._tail else None
        name: StreamName = "stdout"
        if isinstance(last, _Run):
            name = last.name
        elif isinstance(first, StreamOutput):
            name = first.name
        else:
            self._streams[name].runs += 1  # it stands alone, and is one more run of its stream
            self._fit()
        lost = f"{amount(self._dropped_bytes)} of output left out here, in {self._dropped_messages:,} messages"
        return StreamOutput(name, f"\n[... {lost} ...]\n")


def amount(size: int) -> str:
    """Return bytes as people read them."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _events(outputs: list[_Run | _Shown]) -> Iterator[tuple[Output, int]]:
    """Yield what the outputs are made of, and let go of it."""
    outputs.reverse()
    while outputs:
        output = outputs.pop()
        if isinstance(output, _Shown):
            yield output.output, output.number
        else:
            for piece in output.text.pieces():
                yield StreamOutput(output.name, piece), 0


def _width(text: str) -> int:
    """Return the bytes that each character of a text takes in memory."""
    if text.isascii():
        return 1
    if len(text) < _SHORT:
        widest = ord(max(text))
        return 1 if widest < 0x100 else 2 if widest < 0x10000 else 4
    ratio = sys.getsizeof(text) / len(text)
    return 4 if ratio > 3.9 else 2 if ratio > 1.9 else 1


def cost(event: OutputEvent) -> int:
    """Return the bytes that an event takes in memory."""
    match event:
        case StreamOutput():
            return _EVENT + sys.getsizeof(event.text)
        case DisplayData() | UpdateDisplayData() | ExecuteResult():
            return _EVENT + memory_of(event.data) + memory_of(event.metadata)
        case ErrorOutput():
            return _EVENT + memory_of([event.ename, event.evalue, *event.traceback])
        case CommMessage():
            return _EVENT + memory_of(event.data)
    return _EVENT


def _size(event: OutputEvent) -> int:
    """Return the bytes of an event's content, as people count them: text in UTF-8."""
    match event:
        case StreamOutput():
            return len(event.text) if event.text.isascii() else len(event.text.encode())
        case DisplayData() | UpdateDisplayData() | ExecuteResult():
            return sum(len(item) if isinstance(item, str) else memory_of(item) for item in event.data.values())
        case ErrorOutput():
            return sum(map(len, (event.ename, event.evalue, *event.traceback)))
    return 0
