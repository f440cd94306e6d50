"""What a cell puts out: frozen events as they come, and the one result at the end.

Everything here that came from a sandbox is a claim of hostile code: show it, never run or render it unescaped.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.outcome import Outcome

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

Status = Literal["ok", "error"]
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


InputHandler = Callable[[InputRequest], Awaitable[str]]
"""What answers a cell's ``input()``: returns the line, or raises EOFError, which the cell then gets too."""


@dataclass(frozen=True, slots=True)
class OutputDropped:
    """Here a part of the output was left out: it was past a limit, and neither at its beginning nor at its end."""

    dropped_bytes: int
    dropped_messages: int


@dataclass(frozen=True, slots=True)
class Truncation:
    """What of a cell's output was left out, and why.

    Attributes:
        reason: the limit that was passed first: "max_output_size_mb", "output.messages", "output.displays", or
            "message_size" (one value, display or error larger than the wire takes: at most 5 MiB; it says so itself).
        limit_bytes: of the cell's outputs.
        dropped_bytes: of text in UTF-8; of other content as it lay in memory.
        dropped_messages: pieces of output, as the kernel sent them; one that lost a part counts too.
    """

    reason: str
    limit_bytes: int
    dropped_bytes: int
    dropped_messages: int

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the host itself saw of one cell, beside what the kernel claims.

    Attributes:
        exit_code: of the container's first process, when the cell ended its kernel and the engine could tell.
        signal: that ended it, such as "SIGKILL".
        oom_kills: processes of the sandbox that were killed for want of memory while the cell ran.
        interrupts: how often the host interrupted the cell.
        stopped_after_s: seconds from the cell's start to its first interrupt.
        output_bytes, output_messages: all that it put out, with what was left out.
        cpu_s: seconds of CPU that the sandbox took; None where the host cannot read the container's cgroup.
        peak_memory_mb: MiB that the sandbox held at most, page cache left out; None as for ``cpu_s``. Where the
            cgroup's high-water mark cannot be reset (cgroup v2), of the kernel's life so far.
    """

    exit_code: int | None = None
    signal: str | None = None
    oom_kills: int = 0
    interrupts: int = 0
    stopped_after_s: float | None = None
    output_bytes: int = 0
    output_messages: int = 0
    cpu_s: float | None = None
    peak_memory_mb: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


Output = StreamOutput | DisplayData | ExecuteResult | ErrorOutput
OutputEvent = Output | UpdateDisplayData | ClearOutput | CommMessage | OutputDropped


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """All that is known of one finished cell.

    Attributes:
        status: "ok", or "error" for whatever is not.
        outcome: how it ended: "ok", "error" (the code raised), "timeout", "interrupted" (by ``manager.interrupt``),
            "cancelled" (its awaiting task was), "oom" (the kernel, or a process that the cell started, went past the
            memory limit), "output_limit" (past what it may put out, where the policy stops it, or one message past
            all bounds), "kernel_died" (the code ended its own kernel) or "engine_lost" (the Docker engine is gone).
        outputs: in the order of their appearance, as a notebook would show them.
        error: the exception, or what became of the kernel, when status is "error".
        execution_count: the kernel's number for this cell; None where it never said.
        duration_s: seconds on the host's clock.
        truncated: None where everything the cell put out is here.
        mime_dropped: mime types that the policy does not let through, and the cell put out; 20 at most.
        kernel_state: "idle" (alive, its variables are there) or "dead" (the agent's next kernel begins empty).
        runtime: the container runtime that the cell ran under.
        evidence: what the host saw.
        warnings: what the agent should know before it becomes an error, such as memory that runs out.
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
    evidence: Evidence = Evidence()
    warnings: tuple[str, ...] = ()

    @property
    def stdout(self) -> str:
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        return self._stream("stderr")

    @property
    def result(self) -> str | None:
        """The text of the last expression's value, or None."""
        for output in reversed(self.outputs):
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
            "outcome": self.outcome.value,
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
            "evidence": self.evidence.as_dict(),
            "warnings": list(self.warnings),
        }

    def _stream(self, name: str) -> str:
        return "".join(o.text for o in self.outputs if isinstance(o, StreamOutput) and o.name == name)


@dataclass(frozen=True, slots=True)
class CellFinished:
    """The last event of a stream."""

    result: ExecutionResult


Event = OutputEvent | CellFinished


def memory_of(value: Any) -> int:
    """Return the bytes that a JSON value takes in memory."""
    size = sys.getsizeof(value)
    if isinstance(value, Mapping):
        return size + sum(sys.getsizeof(key) + memory_of(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return size + sum(map(memory_of, value))
    return size
