"""What a part of the outputs, the head or the tail, counts against the limits. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.output.events import DisplayData, ExecuteResult, Output, StreamOutput
from orchestrator.output.outputs import StreamName
from orchestrator.output.sizes import EVENT, cost


@dataclass(slots=True)
class StreamCost:
    """What one character of a stream costs.

    Attributes:
        width: bytes of a character; one wide character widens all of a text.
        runs: how often the stream began anew, after another output. ``ExecutionResult.stdout`` copies several runs.
    """

    width: int = 1
    runs: int = 0

    @property
    def price(self) -> int:
        """Bytes for each character."""
        return self.width * (2 if self.runs > 1 else 1)


@dataclass(slots=True)
class Share:
    """What the head, or the tail, holds.

    Attributes:
        runs: neighbouring pieces of one stream, each an output of its own. The head's alone; see ``Tail.runs``.
        other: bytes of everything but the streams' text.
        characters: of each stream's text.
    """

    messages: int = 0
    displays: int = 0
    runs: int = 0
    other: int = 0
    characters: dict[StreamName, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})

    def count(self, event: Output, sign: int = 1) -> None:
        """Add an event; with ``sign=-1`` subtract it."""
        self.messages += sign
        self.displays += sign * isinstance(event, DisplayData | ExecuteResult)
        if isinstance(event, StreamOutput):
            self.other += sign * EVENT
            self.characters[event.name] += sign * len(event.text)
        else:
            self.other += sign * cost(event)

    def cost(self, streams: dict[StreamName, StreamCost]) -> int:
        """Return the bytes that it takes in memory."""
        return self.other + sum(streams[name].price * count for name, count in self.characters.items())
