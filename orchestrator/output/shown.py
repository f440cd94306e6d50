"""The outputs of a cell in the order in which a notebook shows them. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from orchestrator.output.events import DisplayData, ErrorOutput, ExecuteResult, Output, StreamOutput
from orchestrator.output.outputs import StreamName
from orchestrator.output.streamtext import StreamText


@dataclass(slots=True)
class Run:
    """Neighbouring pieces of one stream, which a notebook shows as one output."""

    name: StreamName
    text: StreamText = field(default_factory=StreamText)


@dataclass(slots=True)
class Shown:
    """Any other output.

    Attributes:
        number: of its event among the cell's; an update with a higher number replaces its content.
    """

    output: DisplayData | ExecuteResult | ErrorOutput
    number: int


def drain(outputs: list[Run | Shown]) -> Iterator[tuple[Output, int]]:
    """Yield the events that the outputs consist of, each with its number, and empty the list."""
    outputs.reverse()
    while outputs:
        output = outputs.pop()
        if isinstance(output, Shown):
            yield output.output, output.number
        else:
            for piece in output.text.pieces():
                yield StreamOutput(output.name, piece), 0
