"""CellFacts: what the host saw, and what the kernel claimed, of one cell that is over. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from orchestrator.limits import KernelResourceLimits
from orchestrator.outcome import Exit, Stop
from orchestrator.output.fileinfo import ChangedFile
from orchestrator.output.outputs import ErrorOutput, Output, UpdateDisplayData
from orchestrator.output.result import Truncation


class Measured(Protocol):
    """The part of ``Usage`` that a verdict needs."""

    @property
    def cpu_s(self) -> float:
        """See ``Usage``."""

    @property
    def memory(self) -> int:
        """See ``Usage``."""

    @property
    def peak(self) -> int:
        """See ``Usage``."""

    @property
    def oom_kills(self) -> int:
        """See ``Usage``."""


@dataclass(frozen=True, slots=True)
class CellFacts:
    """What is known of one cell that is over. The defaults describe one that ended well.

    Attributes:
        msg_id: the id of its request.
        runtime: the container runtime of its kernel.
        limits: those of the cell.
        warn_percent: of a limit, from which on a result warns of it.
        completed: whether the kernel sent both the reply and the idle status. Claims, as the next three are.
        error: the exception that the kernel sent as an output.
        reply_error: the exception that the kernel's reply names.
        execution_count: the kernel's number for the cell.
        stopped: why the host stopped it; None where it did not.
        interrupts: how often the host interrupted it.
        stopped_after_s: seconds from its start to its first interrupt.
        duration_s: seconds on the host's clock.
        kernel_lives: whether the kernel is still connected.
        violated: whether the host disconnected the kernel because it broke the protocol or exceeded a bound.
        excess: whether that was because it sent too much.
        disconnect_reason: why the kernel was disconnected; "" while it is connected.
        end: how the kernel's container ended; None while it lives, or where that is unknown.
        before, after: what the kernel used when the cell began and ended; None where the host cannot read it.
        killed_before: processes that were killed for want of memory since the last cell ended.
        kernel_warnings: what the kernel's reply warns of. Claims.
        changed_files, outputs, updates, truncated, mime_dropped: see ``ExecutionResult``.
        output_bytes, output_messages, tool_calls, tool_s: see ``Evidence``.
    """

    msg_id: str = ""
    runtime: str = ""
    limits: KernelResourceLimits = KernelResourceLimits()  # noqa: RUF009 - immutable
    warn_percent: float = 80.0
    completed: bool = True
    error: ErrorOutput | None = None
    reply_error: ErrorOutput | None = None
    execution_count: int | None = None
    stopped: Stop | None = None
    interrupts: int = 0
    stopped_after_s: float | None = None
    duration_s: float = 0.0
    kernel_lives: bool = True
    violated: bool = False
    excess: bool = False
    disconnect_reason: str = ""
    end: Exit | None = None
    before: Measured | None = None
    after: Measured | None = None
    killed_before: int = 0
    kernel_warnings: tuple[str, ...] = ()
    tool_calls: int = 0
    tool_s: float = 0.0
    changed_files: tuple[ChangedFile, ...] = ()
    outputs: tuple[Output, ...] = ()
    updates: tuple[UpdateDisplayData, ...] = ()
    truncated: Truncation | None = None
    output_bytes: int = 0
    output_messages: int = 0
    mime_dropped: tuple[str, ...] = ()

    @property
    def oom_kills(self) -> int:
        """Processes of the sandbox that were killed for want of memory while the cell ran."""
        if self.before is None or self.after is None:
            return 0
        return max(0, self.after.oom_kills - self.before.oom_kills)
