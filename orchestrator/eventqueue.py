"""EventQueue: what a cell has put out and its consumer has not taken yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from orchestrator.limits import MIB
from orchestrator.output.events import OutputEvent
from orchestrator.output.sizes import cost
from orchestrator.output.watched import CellBegun

_BEHIND = MIB  # bytes of events that may wait for the consumer before the kernel has to wait


class EventQueue:
    """Events in their order. The kernel has to wait while too many of them do.

    Args:
        hold: called with whether the kernel has to wait.

    Attributes:
        muted: whether the consumer gets no more events: it kept a cell waiting that has to end.
    """

    def __init__(self, hold: Callable[[bool], None]) -> None:
        self.muted = False
        self._hold_kernel = hold
        self._events: deque[OutputEvent | CellBegun] = deque()
        self._cost = 0
        self._held = False

    def __len__(self) -> int:
        return len(self._events)

    def announce(self, begun: CellBegun) -> None:
        """Add the notice that the kernel has begun the cell."""
        self._events.append(begun)

    def add(self, event: OutputEvent) -> None:
        """Add an event, unless the queue is muted."""
        if not self.muted:
            self._events.append(event)
            self._cost += cost(event)
            self._hold(self._cost > _BEHIND)

    def take(self) -> OutputEvent | CellBegun:
        """Remove the first event, and return it."""
        event = self._events.popleft()
        if not isinstance(event, CellBegun):
            self._cost -= cost(event)
            self._hold(self._held and self._cost > _BEHIND // 2)
        return event

    def clear(self) -> None:
        """Drop what waits."""
        self._events.clear()

    def release(self) -> None:
        """Let a cell that waits for its consumer go on to its end. The result has the events that are not taken."""
        self.muted = self.muted or self._held
        self._hold(False)

    def mute(self) -> None:
        """Take no more events, and let the kernel go on."""
        self.muted = True
        self._hold(False)

    def _hold(self, held: bool) -> None:
        if held != self._held:
            self._held = held
            self._hold_kernel(held)
