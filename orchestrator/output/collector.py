"""Collects a cell's events into outputs as a notebook shows them, and truncates output that exceeds a limit. Pure.

While everything fits, all of it is kept. The first event that does not fit splits the output: the first third of the
limit is the head, which stays; the rest is the tail, whose oldest events are left out as new ones come. So an agent
sees how its cell began, how it ended, and how much was left out in between.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.limits import OutputLimits
from orchestrator.output.amounts import amount
from orchestrator.output.displayupdates import DisplayUpdates
from orchestrator.output.events import (
    ClearOutput,
    CommMessage,
    DisplayData,
    ExecuteResult,
    Output,
    OutputDropped,
    OutputEvent,
    StreamOutput,
    Truncation,
    UpdateDisplayData,
)
from orchestrator.output.outputs import StreamName
from orchestrator.output.share import Share, StreamCost
from orchestrator.output.shown import Run, Shown, drain
from orchestrator.output.sizes import EVENT, content_size, cost, width
from orchestrator.output.tail import Tail, Waiting

_LARGEST_PIECE = 1024 * 1024  # bytes of one event after the split; larger ones are left out unread
# Bytes of one event that is read however low the limit is: a kernel's longest piece of text, if all were line feeds.
_ALWAYS_READ = 576 * 1024
_TOO_LARGE = "max_output_size_mb"
_MOST_RUNS = 5000  # of text, each an output of its own: a notebook of more takes long to make, and nobody reads it
_TOO_MANY_RUNS = "outputs"
_TOO_MANY_DISPLAYS = "output.displays"
_SOME_TEXT = "text"  # of an unknown stream
_NO_TEXT = "display"  # a display, a result or an error
_IN_ALL = 10  # times the limit, and 4 MiB: what a cell may put out with what it clears, overwrites and replaces
_IN_ALL_LEAST = 4 * 1024 * 1024
_TOO_LARGE_A_MESSAGE = "message_size"


class OutputCollector:
    """The outputs of one cell, within ``limits``.

    Attributes:
        bytes_seen, messages_seen: everything that the cell put out, including what is left out.
    """

    def __init__(self, limits: OutputLimits) -> None:
        self._limits = limits
        self.bytes_seen = 0
        self.messages_seen = 0
        self._in_all = 0  # bytes put out, with what was cleared, overwritten and replaced
        self._number = 0  # of the last display or update
        self._updates = DisplayUpdates()
        self._reset()

    def _reset(self) -> None:
        self._clear_at_next = False
        self._outputs: list[Run | Shown] = []
        self._tail = self._new_tail()
        self._in_head = Share()
        self._streams: dict[StreamName, StreamCost] = {"stdout": StreamCost(), "stderr": StreamCost()}
        self._last: str | None = None  # the stream of the last event; None where that was none
        self._updates.clear()
        self._lost: set[str] = set()  # what was left out: names of streams, _SOME_TEXT, _NO_TEXT
        self._split = False
        self._dropped_bytes = self._dropped_messages = self._dropped_unseen = 0
        self._missed_bytes = self._missed_messages = 0
        self._reason = ""
        self._marked = False

    def _clear(self) -> None:
        """Clear the outputs. Once the cell has put out all that it may, this makes no room for more."""
        if not self._is_spent:
            self._reset()
            return
        bytes_, messages, unseen = self._dropped_bytes, self._dropped_messages, self._dropped_unseen
        lost = self._lost | {_kind(event) for event, _ in drain(self._outputs)} | set(map(_kind, self._tail.events))
        self._reset()
        self._lost = lost
        self._split, self._reason = True, _TOO_LARGE
        self._dropped_bytes, self._dropped_messages, self._dropped_unseen = bytes_, messages + 1, unseen + 1

    @property
    def _is_spent(self) -> bool:
        return self._in_all > _IN_ALL * self._limits.bytes + _IN_ALL_LEAST

    @property
    def is_past_limit(self) -> bool:
        """Whether output was left out because it exceeded a limit, or the cell may put out no more."""
        return bool(self._dropped_bytes or self._dropped_messages or self._is_spent)

    @property
    def truncation(self) -> Truncation | None:
        """How much is missing from the outputs; None while they are complete."""
        if not self._dropped_messages and not self._missed_messages:
            return None
        size, messages = self._dropped_bytes + self._missed_bytes, self._dropped_messages + self._missed_messages
        return Truncation(self._reason, self._limits.bytes, size, messages)

    def wants(self, size: int) -> bool:
        """Return whether to read an event of at most ``size`` bytes: whether any of it could be kept."""
        largest = self._limits.bytes * 2 // 3
        largest = min(largest, _LARGEST_PIECE) if self._split else max(largest, self._room())
        return size <= max(largest, _ALWAYS_READ)

    def refuse(self, size: int, *, text: bool = True) -> None:
        """Leave out an event of ``size`` bytes that was not read.

        Args:
            text: whether it is text of a stream.
        """
        self.bytes_seen += size
        self.messages_seen += 1
        self._in_all += size
        self._split_outputs(_TOO_LARGE)
        self._drop(size, _SOME_TEXT if text else _NO_TEXT, seen=False)

    def miss(self, size: int) -> None:
        """Count ``size`` bytes that the kernel left out of the event that was added last; its text says so."""
        self.bytes_seen += size
        self._missed_bytes += size
        self._missed_messages += 1
        self._reason = self._reason or _TOO_LARGE_A_MESSAGE

    def add(self, event: OutputEvent) -> OutputEvent | None:
        """Add an event.

        Returns:
            What to stream to the consumer now: the event; its beginning, where the limit is exceeded within it; or
            None. ``finish`` yields the rest, unless it is left out.
        """
        self.bytes_seen += (size := content_size(event))
        self.messages_seen += 1
        self._in_all += size + EVENT if isinstance(event, StreamOutput) else cost(event)
        if self._is_spent:
            self._split_outputs(_TOO_LARGE)
        match event:
            case ClearOutput(wait=True):
                self._clear_at_next = True
                return None if self._is_spent else event
            case ClearOutput():
                self._clear()
                return None if self._is_spent else event
            case UpdateDisplayData():
                return event if self._update(event, size) else None
            case CommMessage():
                return event if self.messages_seen <= self._limits.messages and not self._is_spent else None
            case OutputDropped():
                raise AssertionError("unreachable: only the collector makes OutputDropped")
        if self._clear_at_next:
            self._clear()
        return self._keep(event)

    def finish(self) -> Iterator[OutputEvent]:
        """End the collecting. Yield what was not streamed yet: how much was left out, and the tail."""
        if self._dropped_messages and not self._marked:
            self._marked = True
            self._append(self._mark(), 0)
            if self._dropped_unseen:
                yield OutputDropped(self._dropped_bytes, self._dropped_messages)
        for waiting in self._tail.drain():
            self._append(waiting.event, waiting.number)
            if not waiting.streamed:
                yield waiting.event
        yield from self._updates.unstreamed()

    def so_far(self, most: int) -> tuple[list[Output], int]:
        """Return the first outputs as they are now, and how many there are. The end of too much output is missing."""
        shown = self._outputs[:most]
        texts = [StreamOutput(each.name, each.text.so_far()) if isinstance(each, Run) else None for each in shown]
        return [text or self._final(each) for text, each in zip(texts, shown, strict=True)], len(self._outputs)

    def outputs(self) -> tuple[Output, ...]:
        """Return the outputs. Call it once, after ``finish``."""
        outputs, self._outputs = self._outputs, []
        return tuple(map(self._final, outputs))

    @property
    def updates(self) -> tuple[UpdateDisplayData, ...]:
        """The last update of each id that the cell itself has no display of: earlier cells' displays may have it."""
        return self._updates.of_earlier_cells()

    def _new_tail(self) -> Tail:
        return Tail(most_joined=self._limits.messages // 16)

    def _keep(self, event: Output) -> Output | None:
        self._number += 1
        number, self._last, last = self._number, None, self._last
        if isinstance(event, StreamOutput):
            stream = self._streams[event.name]
            stream.runs += last != event.name
            stream.width = max(stream.width, width(event.text))
            self._last = event.name
        elif isinstance(event, DisplayData | ExecuteResult) and event.display_id is not None:
            self._updates.show(event.display_id)
        if self._split:
            self._tail.join(Waiting(event, number, streamed=False))
            self._fit()
            return None
        reason = self._excess_with(event)
        if not reason:
            self._append(event, number)
            return event
        first, rest = self._divided(event)
        if first is not None:
            self._append(first, number)
        self._split_outputs(reason)
        if rest is not None:
            self._tail.add(Waiting(rest, number, streamed=False))
            self._fit()
        return first

    def _divided(self, event: Output) -> tuple[Output | None, Output | None]:
        """Divide the event that exceeds the limit into its part in the head, and the rest."""
        first = self._head_part(event)
        if not isinstance(event, StreamOutput) or not isinstance(first, StreamOutput):
            return None, event
        rest = event.text[len(first.text) :]
        return first, StreamOutput(event.name, rest) if rest else None

    def _append(self, event: Output, number: int) -> None:
        """Put an event at the end of the outputs."""
        self._in_head.count(event)
        if not isinstance(event, StreamOutput):
            self._outputs.append(Shown(event, number))
            return
        run = self._run_of(event)
        if run is not None:
            self._in_head.other -= EVENT
        else:
            run = Run(event.name)
            self._outputs.append(run)
            self._in_head.runs += 1
        before = run.text.size
        run.text.add(event.text)
        self._in_head.characters[event.name] += run.text.size - before - len(event.text)  # a return overwrites

    def _run_of(self, event: Output) -> Run | None:
        """Return the last output where the event continues it."""
        run = self._outputs[-1] if self._outputs else None
        return run if isinstance(run, Run) and isinstance(event, StreamOutput) and run.name == event.name else None

    def _room(self) -> int:
        return (
            self._limits.bytes
            - self._updates.cost
            - self._in_head.cost(self._streams)
            - self._tail.share.cost(self._streams)
        )

    def _excess(self) -> str:
        """Return the name of the limit that is exceeded; "" for none."""
        if self._room() < 0:
            return _TOO_LARGE
        if self._in_head.messages + self._tail.share.messages > self._limits.messages:
            return "output.messages"
        if self._in_head.runs + self._tail.runs > _MOST_RUNS:
            return _TOO_MANY_RUNS
        return _TOO_MANY_DISPLAYS if self._in_head.displays + self._tail.share.displays > self._limits.displays else ""

    def _excess_with(self, event: Output) -> str:
        """Return the name of the limit that one more event would exceed; "" for none."""
        more = isinstance(event, StreamOutput) and self._run_of(event) is None
        self._in_head.count(event)
        self._in_head.runs += more
        reason = self._excess()
        self._in_head.runs -= more
        self._in_head.count(event, -1)
        return reason

    def _split_outputs(self, reason: str) -> None:
        """Split the outputs into head and tail. Does nothing without a reason, or after the first split."""
        if reason and not self._split:
            self._split, self._reason = True, self._reason or reason
            self._shorten_head()
            self._fit()

    def _shorten_head(self) -> None:
        """Move all but the head's first part to the tail."""
        outputs, self._outputs = self._outputs, []
        counted, self._in_head = self._in_head, Share()
        later, self._tail = self._tail, self._new_tail()
        full = False
        for event, number in drain(outputs):
            kept = None if full else self._head_part(event)
            full = kept is not event
            if kept is not None:
                self._append(kept, number)
            if kept is None:
                self._tail.add(Waiting(event, number, streamed=True))
            elif full and isinstance(event, StreamOutput) and isinstance(kept, StreamOutput):
                rest = event.text[len(kept.text) :]
                self._tail.add(Waiting(StreamOutput(event.name, rest), number, streamed=True))
        for waiting in later.drain():
            self._tail.add(waiting)
        # Joined messages count as fewer than were sent; the head may have half of the limit, as they were sent.
        self._in_head.messages = min(counted.messages, self._limits.messages // 2)

    def _head_part(self, event: Output) -> Output | None:
        """Return the part of an event that fits in the head; None for none of it."""
        limits, head = self._limits, self._in_head
        room = limits.bytes // 3 - head.cost(self._streams) - (0 if self._run_of(event) else EVENT)
        if room <= 0 or head.messages >= limits.messages // 2:
            return None
        if isinstance(event, StreamOutput):
            if head.runs >= _MOST_RUNS // 2 and self._run_of(event) is None:
                return None
            most = room // self._streams[event.name].price
            return event if len(event.text) <= most else StreamOutput(event.name, event.text[:most])
        many = isinstance(event, DisplayData | ExecuteResult) and head.displays >= limits.displays // 2
        return None if many or cost(event) > room else event

    def _fit(self) -> None:
        """Leave out the oldest events of the tail until everything fits."""
        if self._in_head.cost(self._streams) > self._limits.bytes * 2 // 3:  # one wide character has widened all of it
            self._shorten_head()
        while self._tail and self._excess():
            self._leave_out_oldest()

    def _leave_out_oldest(self) -> None:
        too_large = self._excess() == _TOO_LARGE
        waiting = self._tail.pop()
        event = waiting.event
        if isinstance(event, StreamOutput) and too_large:
            fitting = (self._room() - EVENT) // self._streams[event.name].price
            if 0 < fitting < len(event.text):  # keep its end
                kept, event = event.text[-fitting:], StreamOutput(event.name, event.text[:-fitting])
                self._tail.put_back(Waiting(StreamOutput(event.name, kept), 0, waiting.streamed, missed=True))
        if isinstance(event, DisplayData | ExecuteResult) and event.display_id is not None:
            self._updates.forget(event.display_id)
        size, messages = content_size(event), waiting.messages - waiting.missed
        self._drop(size, _kind(event), seen=waiting.streamed, messages=messages)

    def _drop(self, size: int, kind: str, *, seen: bool, messages: int = 1) -> None:
        self._dropped_bytes += size
        self._dropped_messages += messages
        self._dropped_unseen += not seen
        self._lost.add(kind)

    def _update(self, event: UpdateDisplayData, size: int) -> bool:
        """Replace the content of every display with this id. Returns whether to stream the event."""
        updates, name, taken = self._updates, event.display_id, cost(event)
        own = updates.is_own(name)
        while self._room() < updates.more(name, taken) and self._tail:
            self._leave_out_oldest()
            if own and not updates.is_own(name):  # its display is left out now
                return False
        reason = _TOO_LARGE if self._room() < updates.more(name, taken) else ""
        if updates.is_new(name) and len(updates) >= self._limits.displays:
            reason = reason or _TOO_MANY_DISPLAYS
        if reason:
            self._split_outputs(reason)
            self._drop(size, _NO_TEXT, seen=False)
            return False
        self._number += 1
        updates.add(event, self._number, taken, streamed=not self._split)
        return not self._split

    def _final(self, output: Run | Shown) -> Output:
        if isinstance(output, Run):
            return StreamOutput(output.name, "".join(output.text.pieces()))
        return self._updates.applied(output.output, output.number)

    def _mark(self) -> Output:
        """Return what stands where output was left out: text of a stream where any was lost, else a display."""
        name = self._stream_of_mark()
        if name is not None and name not in self._neighbours():
            self._streams[name].runs += 1  # it is one more run of its stream
            self._fit()
        lost = f"{amount(self._dropped_bytes)} of output left out here, in {self._dropped_messages:,} messages"
        if name is None:
            return DisplayData({"text/plain": f"[... {lost} ...]"})
        return StreamOutput(name, f"\n[... {lost} ...]\n")

    def _stream_of_mark(self) -> StreamName | None:
        lost = self._lost - {_NO_TEXT}
        if not lost:
            return None
        names = [name for name in self._streams if lost == {name}] or self._neighbours()
        return names[0] if names else "stdout"

    def _neighbours(self) -> list[StreamName]:
        """Return the streams of the text before and after the place of the mark."""
        last, first = self._outputs[-1] if self._outputs else None, self._tail.first
        before = [last.name] if isinstance(last, Run) else []
        return before + ([first.name] if isinstance(first, StreamOutput) else [])


def _kind(event: Output) -> str:
    return event.name if isinstance(event, StreamOutput) else _NO_TEXT
