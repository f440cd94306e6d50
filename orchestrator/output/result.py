"""All that is known of one finished cell: its outcome, its outputs, and what the host itself saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from orchestrator.outcome import CellOutcome, Outcome
from orchestrator.output import formodels
from orchestrator.output.fields import Fields
from orchestrator.output.fileinfo import ChangedFile
from orchestrator.output.outputs import (
    ErrorOutput,
    ExecuteResult,
    Output,
    StreamName,
    StreamOutput,
    UpdateDisplayData,
    output_from_dict,
)

Status = Literal["ok", "error"]
KernelState = Literal["idle", "dead"]
_CELL_OUTCOMES: tuple[Outcome, ...] = get_args(CellOutcome)


@dataclass(frozen=True, slots=True)
class Truncation:
    """How much of a cell's output was left out, and why.

    Attributes:
        reason: the limit that was exceeded first: "max_output_size_mb", "output.messages", "output.displays",
            "outputs" (5,000 changes between stdout and stderr), or "message_size" (one value, display or error larger
            than one message may be, at most 5 MiB; the output itself says so).
        limit_bytes: of the cell's outputs.
        dropped_bytes: of text in UTF-8; of other content as it lay in memory.
        dropped_messages: pieces of output, as the kernel sent them; a piece that lost a part counts too.
    """

    reason: str
    limit_bytes: int
    dropped_bytes: int
    dropped_messages: int

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return what ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form)
        return cls(
            reason=fields.value("reason", str),
            limit_bytes=fields.value("limit_bytes", int),
            dropped_bytes=fields.value("dropped_bytes", int),
            dropped_messages=fields.value("dropped_messages", int),
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the host itself saw of one cell, beside what the kernel claims.

    Attributes:
        exit_code: of the container's first process, when the kernel ended in this cell and the engine could report it.
        signal: the signal that ended it, such as "SIGKILL".
        oom_kills: processes of the sandbox that the OOM killer killed while the cell ran.
        interrupts: how often the host interrupted the cell.
        stopped_after_s: seconds from the cell's start to its first interrupt.
        output_bytes, output_messages: everything that the cell put out, including what was left out.
        tool_calls: how many calls of host tools the cell made, refused ones included.
        tool_s: seconds in which at least one of them ran. They do not count against the cell's time limit.
        cpu_s: CPU seconds that the sandbox used; None where the host cannot read the container's cgroup.
        peak_memory_mb: MiB that the sandbox held at most, without page cache; None as for ``cpu_s``. Where the cgroup's
            high-water mark cannot be reset (cgroup v2 before Linux 6.12), and the cell did not raise it, what it held
            before or after.
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
    tool_calls: int = 0
    tool_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return what ``as_dict`` described.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form)
        return cls(
            exit_code=fields.optional("exit_code", int),
            signal=fields.optional("signal", str),
            oom_kills=fields.value("oom_kills", int),
            interrupts=fields.value("interrupts", int),
            stopped_after_s=fields.optional("stopped_after_s", float),
            output_bytes=fields.value("output_bytes", int),
            output_messages=fields.value("output_messages", int),
            cpu_s=fields.optional("cpu_s", float),
            peak_memory_mb=fields.optional("peak_memory_mb", float),
            tool_calls=fields.value_if_any("tool_calls", int, 0),
            tool_s=fields.value_if_any("tool_s", float, 0.0),
        )


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """All that is known of one finished cell.

    Attributes:
        status: "ok", or "error" for every other outcome.
        outcome: how the cell ended; compares equal to its string: "ok", "error" (the code raised), "timeout",
            "interrupted" (by ``manager.interrupt``), "cancelled" (the task that awaited it was), "oom" (the kernel, or
            a process that the cell started, exceeded the memory limit), "output_limit" (too much output, where the
            policy stops the cell, or one message larger than any may be), "kernel_died" (the code ended its own kernel)
            or "engine_lost" (the Docker engine does not answer).
        outputs: in the order in which a notebook would show them.
        error: the exception, or why the kernel ended, when status is "error".
        execution_count: the kernel's number for this cell; None where the kernel reported none.
        duration_s: seconds on the host's clock.
        truncated: None where all of the cell's output is here.
        mime_dropped: mime types of which content was left out: the policy does not allow them, or the content is not
            what the type says, such as an image that is no base64; 20 at most.
        kernel_state: "idle" (alive, the variables remain) or "dead" (the agent's next kernel begins empty).
        runtime: the container runtime that the cell ran under.
        evidence: what the host saw.
        warnings: limits that the cell came close to, such as memory.
        changed_files: the files of ``/work`` that the cell made, changed or removed, 100 at most, by path. Changes by
            commands that ran meanwhile are among them. A warning says if there are more.
        updates: the last content that the cell gave to each display that it did not make itself. An exported notebook
            shows it in the cell that made the display.
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
    updates: tuple[UpdateDisplayData, ...] = ()
    changed_files: tuple[ChangedFile, ...] = ()

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the cell's output are here."""
        return self.evidence.output_bytes - (0 if self.truncated is None else self.truncated.dropped_bytes)

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
        return self.outcome in (Outcome.TIMEOUT, Outcome.INTERRUPTED, Outcome.CANCELLED)

    def as_text(self, limit: int = formodels.LIMIT) -> str:
        """Return the result as one text for a language model.

        It has the output in its order, the traceback with the frames of the user's own code, pictures and rich output
        by name, and in brackets what was truncated, how the cell ended if not well, warnings, and changed files. It has
        no control characters, but may say anything: it is the sandbox's.

        Args:
            limit: characters, 200 at least. Beyond it the middle of the output is left out.
        """
        return formodels.cell_text(self, limit)

    def as_dict(self) -> dict[str, Any]:
        """Return the reference's dict form, and the other fields beside it."""
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
            "updates": [update.as_dict() for update in self.updates],
            "changed_files": [file.as_dict() for file in self.changed_files],
        }

    @classmethod
    def from_dict(cls, form: Mapping[str, Any]) -> Self:
        """Return the result that ``as_dict`` described; fields that follow from others, such as stdout, are ignored.

        Raises:
            ValueError: a field is missing or invalid; the message names its key.
        """
        fields = Fields(form)
        return cls(
            status=fields.choice("status", "ok", "error"),
            outcome=fields.choice("outcome", *_CELL_OUTCOMES),
            outputs=fields.each("outputs", output_from_dict),
            error=fields.optional_nested("error", ErrorOutput.from_dict),
            msg_id=fields.value("msg_id", str),
            execution_count=fields.optional("execution_count", int),
            duration_s=fields.value("duration_s", float),
            truncated=fields.optional_nested("truncated", Truncation.from_dict),
            kernel_state=fields.choice("kernel_state", "idle", "dead"),
            runtime=fields.value("runtime", str),
            mime_dropped=fields.texts("mime_dropped"),
            evidence=fields.nested("evidence", Evidence.from_dict),
            warnings=fields.texts("warnings"),
            updates=fields.each_if_any("updates", UpdateDisplayData.from_dict),
            changed_files=fields.each_if_any("changed_files", ChangedFile.from_dict),
        )

    def _stream(self, name: StreamName) -> str:
        return "".join(o.text for o in self.outputs if isinstance(o, StreamOutput) and o.name == name)
