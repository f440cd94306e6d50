"""What a cell puts out while it runs: frozen events in their order, and ``CellFinished`` as the last one.

All of it that came from a sandbox is a claim of hostile code: show it, never run it or render it unescaped.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from orchestrator.output.fields import Fields
from orchestrator.output.outputs import (
    OUTPUTS,
    DisplayData,
    ErrorOutput,
    ExecuteResult,
    Output,
    StreamOutput,
    UpdateDisplayData,
    output_from_dict,
)
from orchestrator.output.result import Evidence, ExecutionResult, KernelState, Status, Truncation

__all__ = [
    "CellFinished",
    "ClearOutput",
    "CommMessage",
    "DisplayData",
    "ErrorOutput",
    "Event",
    "Evidence",
    "ExecuteResult",
    "ExecutionResult",
    "InputHandler",
    "InputRequest",
    "KernelState",
    "Output",
    "OutputDropped",
    "OutputEvent",
    "Status",
    "StreamOutput",
    "Truncation",
    "UpdateDisplayData",
    "event_from_dict",
    "output_from_dict",
]


@dataclass(frozen=True, slots=True)
class ClearOutput:
    """Clear all outputs so far; with ``wait``, only once the next one comes."""

    wait: bool

    def as_dict(self) -> dict[str, Any]:
        return {"type": "clear_output", "wait": self.wait}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the event that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        return cls(Fields(form, "clear_output").value("wait", bool))


@dataclass(frozen=True, slots=True)
class CommMessage:
    """A message of a comm, as widgets send them; only where the policy has ``channels.comms``. It is no output.

    Attributes:
        kind: "comm_open", "comm_msg" or "comm_close".
        metadata: of the message; a widget's has the version of its protocol.
        buffers: binary parts of ``data``.
    """

    kind: str
    comm_id: str
    target_name: str
    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    buffers: Sequence[bytes] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "type": "comm",
            "kind": self.kind,
            "comm_id": self.comm_id,
            "target_name": self.target_name,
            "data": dict(self.data),
            "metadata": dict(self.metadata),
            "buffers_base64": [base64.b64encode(each).decode() for each in self.buffers],
        }

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the event that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form, "comm")
        kind, comm_id = fields.value("kind", str), fields.value("comm_id", str)
        return cls(
            kind,
            comm_id,
            fields.value("target_name", str),
            fields.value("data", dict),
            fields.value("metadata", dict),
            tuple(map(_buffer, fields.texts("buffers_base64"))),
        )


def _buffer(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ValueError("'buffers_base64' must be a list of base64 texts") from error


@dataclass(frozen=True, slots=True)
class InputRequest:
    """A cell asks for a line, with ``input()`` or ``getpass()``; only where the policy has ``channels.stdin``.

    Attributes:
        prompt: hostile text. It may pose as another program's prompt.
        password: whether the answer must not be shown.
    """

    prompt: str
    password: bool

    def as_dict(self) -> dict[str, Any]:
        return {"type": "input_request", "prompt": self.prompt, "password": self.password}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the request that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form, "input_request")
        return cls(fields.value("prompt", str), fields.value("password", bool))


InputHandler = Callable[[InputRequest], Awaitable[str]]
"""Answers a cell's ``input()``: returns the line, or raises EOFError, which the cell's ``input()`` then raises too."""


@dataclass(frozen=True, slots=True)
class OutputDropped:
    """A part of the output was left out here: it exceeded a limit, and was neither the beginning nor the end."""

    dropped_bytes: int
    dropped_messages: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "type": "output_dropped",
            "dropped_bytes": self.dropped_bytes,
            "dropped_messages": self.dropped_messages,
        }

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the event that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form, "output_dropped")
        return cls(fields.value("dropped_bytes", int), fields.value("dropped_messages", int))


@dataclass(frozen=True, slots=True)
class CellFinished:
    """The last event of a cell."""

    result: ExecutionResult

    def as_dict(self) -> dict[str, Any]:
        return {"type": "cell_finished", "result": self.result.as_dict()}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the event that ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        return cls(Fields(form, "cell_finished").nested("result", ExecutionResult.from_dict))


OutputEvent = Output | UpdateDisplayData | ClearOutput | CommMessage | OutputDropped
Event = OutputEvent | CellFinished

_EVENTS: dict[str, Callable[[Mapping[str, Any]], Event]] = {
    **OUTPUTS,
    "update_display_data": UpdateDisplayData.from_dict,
    "clear_output": ClearOutput.from_dict,
    "comm": CommMessage.from_dict,
    "output_dropped": OutputDropped.from_dict,
    "cell_finished": CellFinished.from_dict,
}


def event_from_dict(form: Mapping[str, Any]) -> Event:
    """Return the event that any event's ``as_dict`` described.

    Raises:
        ValueError: a field is missing or invalid; the message names its key.
    """
    return _EVENTS[Fields(form).choice("type", *_EVENTS)](form)
