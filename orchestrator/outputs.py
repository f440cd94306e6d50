"""What a cell puts out: frozen events as they come, and the one result at the end.

Everything here that came from a sandbox is a claim of hostile code: show it, never run or render it unescaped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_EVENT = 200  # bytes that an event takes beside its content
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
class CommMessage:
    """A message of a comm, as widgets send them; only where the policy has ``channels.comms``. No output."""

    kind: str
    comm_id: str
    target_name: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InputRequest:
    """A cell asks for a line, with ``input()`` or ``getpass()``; only where the policy has ``channels.stdin``.

    Attributes:
        prompt: hostile text. It may pose as another program's prompt.
        password: whether the answer is not to be shown.
    """

    prompt: str
    password: bool


Answer = Callable[[InputRequest], Awaitable[str]]
"""What answers a cell's ``input()``: returns the line, or raises EOFError, which the cell then gets too."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """What of a cell's output was dropped, and why."""

    reason: str
    limit_bytes: int
    dropped_bytes: int

    def as_dict(self) -> dict[str, Any]:
        return {"reason": self.reason, "limit_bytes": self.limit_bytes, "dropped_bytes": self.dropped_bytes}


Output = StreamOutput | DisplayData | ExecuteResult | ErrorOutput
OutputEvent = Output | UpdateDisplayData | ClearOutput | CommMessage


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
        mime_dropped: mime types that the policy does not let through, and the cell put out; 20 at most.
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
    mime_dropped: tuple[str, ...] = ()

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
            "mime_dropped": list(self.mime_dropped),
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
        self._runs: dict[str, int] = {}
        self._first_run: dict[str, int] = {}

    def cost(self, event: OutputEvent) -> int:
        """Return the bytes that an event will take in memory, in the outputs and in what is made of them."""
        match event:
            case StreamOutput():
                return _EVENT + self._stream_cost(event)
            case DisplayData() | UpdateDisplayData() | ExecuteResult():
                return _EVENT + memory_of(event.data) + memory_of(event.metadata)
            case ErrorOutput():
                return _EVENT + memory_of([event.ename, event.evalue, *event.traceback])
        return _EVENT

    def _stream_cost(self, event: StreamOutput) -> int:
        """Count text twice once its stream comes in several runs: ``stdout`` then joins a copy of them."""
        size, name = sys.getsizeof(event.text), event.name
        last = self._outputs[-1] if self._outputs else None
        if not (isinstance(last, _Text) and last.name == name):
            self._runs[name] = self._runs.get(name, 0) + 1
        if self._runs[name] == 1:
            self._first_run[name] = self._first_run.get(name, 0) + size
            return size
        return 2 * size + self._first_run.pop(name, 0)

    def add(self, event: OutputEvent) -> None:
        match event:
            case ClearOutput(wait=True):
                self._clear_at_next = True
            case ClearOutput():
                self._clear()
            case UpdateDisplayData():
                # Applied at the end: doing it here would cost every display of the id, at every update.
                self._updates[event.display_id] = DisplayData(event.data, event.metadata, event.display_id)
            case CommMessage():
                pass
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
            last.add(output.text)
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
    """Pieces of one stream, joined as they come: adding up strings would cost their length at every piece.

    Like a counter's digits: a piece is joined with the one before it once that is no longer than it. So there are few
    pieces, each is copied a few times, and the last join copies little.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self.name = name
        self._pieces: list[str] = []

    def add(self, text: str) -> None:
        pieces = self._pieces
        pieces.append(text)
        while len(pieces) > 1 and len(pieces[-2]) <= len(pieces[-1]):
            last = pieces.pop()
            pieces[-1] += last

    def join(self) -> StreamOutput:
        self._pieces = ["".join(self._pieces)]
        return StreamOutput(self.name, self._pieces[0])


def memory_of(value: Any) -> int:
    """Return the bytes that a JSON value takes in memory."""
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        return size + sum(sys.getsizeof(key) + memory_of(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return size + sum(map(memory_of, value))
    return size
