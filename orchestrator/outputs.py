"""What a cell puts out: frozen events as they come, and the one result at the end.

Everything here that came from a sandbox is a claim of hostile code: show it, never run or render it unescaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

Status = Literal["ok", "error"]
Outcome = Literal["ok", "error", "timeout", "interrupted", "cancelled", "oom", "output_limit", "kernel_died"]
KernelState = Literal["idle", "dead"]


@dataclass(frozen=True, slots=True)
class StreamOutput:
    """Text that the cell wrote to stdout or stderr."""

    name: Literal["stdout", "stderr"]
    text: str

    def as_dict(self) -> dict[str, Any]:
        return {"type": "stream", "output_type": "stream", "name": self.name, "text": self.text}


@dataclass(frozen=True, slots=True)
class DisplayData:
    """A rich output: mime type to content. Binary types such as image/png are base64 text."""

    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    display_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "type": "display_data",
            "output_type": "display_data",
            "data": dict(self.data),
            "metadata": dict(self.metadata),
        }


@dataclass(frozen=True, slots=True)
class UpdateDisplayData:
    """New content for every earlier display of this id."""

    display_id: str
    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExecuteResult:
    """The value of the cell's last expression, as a mime bundle."""

    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    execution_count: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "type": "execute_result",
            "output_type": "execute_result",
            "data": dict(self.data),
            "metadata": dict(self.metadata),
            "execution_count": self.execution_count,
        }


@dataclass(frozen=True, slots=True)
class ErrorOutput:
    """The exception that ended the cell. ``traceback`` is as the kernel coloured it."""

    ename: str
    evalue: str
    traceback: tuple[str, ...] = ()

    @property
    def traceback_text(self) -> str:
        """The traceback without ANSI codes."""
        return _ANSI.sub("", "\n".join(self.traceback))

    def as_dict(self) -> dict[str, Any]:
        return {
            "type": "error",
            "output_type": "error",
            "ename": self.ename,
            "evalue": self.evalue,
            "traceback": list(self.traceback),
        }


@dataclass(frozen=True, slots=True)
class ClearOutput:
    """All outputs so far are to go; with ``wait``, only once the next one comes."""

    wait: bool


@dataclass(frozen=True, slots=True)
class Truncation:
    """What of a cell's output was dropped, and why."""

    reason: str
    limit_bytes: int
    dropped_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {"reason": self.reason, "limit_bytes": self.limit_bytes, "dropped_bytes": self.dropped_bytes}


Output = StreamOutput | DisplayData | ExecuteResult | ErrorOutput
OutputEvent = Output | UpdateDisplayData | ClearOutput


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """All that is known of one finished cell.

    Attributes:
        status: "ok", or "error" for whatever is not.
        outcome: how it ended: "ok", "error" (the code raised), "timeout", "interrupted", "cancelled", "oom" (past its
            memory, the kernel is gone), "output_limit" (one message past all bounds, the kernel was ended) or
            "kernel_died" (the code ended its own kernel).
        outputs: in the order of their appearance, as a notebook would hold them.
        error: the exception, or what became of the kernel, when status is "error".
        execution_count: the kernel's number for this cell; None where it never said.
        duration_s: seconds on the host's clock.
        truncated: None where everything the cell put out is here.
        kernel_state: "idle" (alive, its variables are there) or "dead".
        runtime: the container runtime that the cell ran under.
    """

    status: Status
    outcome: Outcome
    outputs: tuple[Output, ...]
    error: ErrorOutput | None
    msg_id: str
    execution_count: int | None
    duration_s: float
    truncated: Truncation | None
    kernel_state: KernelState
    runtime: str

    @property
    def stdout(self) -> str:
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        return self._stream("stderr")

    @property
    def result(self) -> str | None:
        """The text of the last expression's value, or None."""
        for output in self.outputs:
            if isinstance(output, ExecuteResult):
                return str(output.data.get("text/plain", ""))
        return None

    @property
    def interrupted(self) -> bool:
        """Whether the host stopped the cell."""
        return self.outcome in ("timeout", "interrupted", "cancelled")

    def as_dict(self) -> dict[str, Any]:
        """The reference's dict form, and the rest beside it."""
        error = None
        if self.error is not None:
            error = {
                "ename": self.error.ename,
                "evalue": self.error.evalue,
                "traceback": list(self.error.traceback),
                "traceback_text": self.error.traceback_text,
            }
        return {
            "status": self.status,
            "outputs": [output.as_dict() for output in self.outputs],
            "error": error,
            "msg_id": self.msg_id,
            "outcome": self.outcome,
            "execution_count": self.execution_count,
            "stdout": self.stdout,
            "stderr": self.stderr,
            "result": self.result,
            "duration_s": self.duration_s,
            "truncated": None if self.truncated is None else self.truncated.as_dict(),
            "interrupted": self.interrupted,
            "kernel_state": self.kernel_state,
            "runtime": self.runtime,
        }

    def _stream(self, name: str) -> str:
        return "".join(o.text for o in self.outputs if isinstance(o, StreamOutput) and o.name == name)


@dataclass(frozen=True, slots=True)
class CellFinished:
    """The last event of a stream."""

    result: ExecutionResult


Event = OutputEvent | CellFinished


class OutputCollector:
    """Folds events into outputs, as a notebook shows them."""

    def __init__(self) -> None:
        self._outputs: list[Output | _Text] = []
        self._updates: dict[str, DisplayData] = {}
        self._clear_at_next = False

    def add(self, event: OutputEvent) -> None:
        match event:
            case ClearOutput(wait=True):
                self._clear_at_next = True
            case ClearOutput():
                self._clear()
            case UpdateDisplayData():
                # Applied at the end: doing it here would cost every display of the id, at every update.
                self._updates[event.display_id] = DisplayData(event.data, event.metadata, event.display_id)
            case _:
                if self._clear_at_next:
                    self._clear()
                self._append(event)

    def outputs(self) -> tuple[Output, ...]:
        return tuple(map(self._final, self._outputs))

    def _final(self, output: Output | _Text) -> Output:
        if isinstance(output, _Text):
            return output.join()
        if isinstance(output, DisplayData) and output.display_id is not None:
            return self._updates.get(output.display_id, output)
        return output

    def _append(self, output: Output) -> None:
        if isinstance(output, StreamOutput):
            last = self._outputs[-1] if self._outputs else None
            if not (isinstance(last, _Text) and last.name == output.name):
                last = _Text(output.name)
                self._outputs.append(last)
            last.pieces.append(output.text)
            return
        if isinstance(output, DisplayData) and output.display_id is not None:
            self._settle(output.display_id)
        self._outputs.append(output)

    def _settle(self, display_id: str) -> None:
        """Apply what updates there were to the displays so far: a new one of the same id shows its own content."""
        update = self._updates.pop(display_id, None)
        if update is None:
            return
        for index, output in enumerate(self._outputs):
            if isinstance(output, DisplayData) and output.display_id == display_id:
                self._outputs[index] = update

    def _clear(self) -> None:
        self._outputs.clear()
        self._updates.clear()
        self._clear_at_next = False


class _Text:
    """Pieces of one stream, joined once: adding up strings would cost their length at every piece."""

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self.name = name
        self.pieces: list[str] = []

    def join(self) -> StreamOutput:
        return StreamOutput(self.name, "".join(self.pieces))
