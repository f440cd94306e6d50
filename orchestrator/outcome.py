"""Outcome: the one vocabulary of endings, of cells, of kernels and of sessions. Pure.

Every member is the string that results, the history, the audit log and the metrics contain, and shows as that string.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Flag, StrEnum, auto
from typing import Final, Literal


class Ends(Flag):
    """What an outcome can be the end of."""

    CELL = auto()
    KERNEL = auto()
    SESSION = auto()


_DEATH: Final = Ends.KERNEL | Ends.SESSION  # a session without a checkpoint ends with its kernel


class Outcome(StrEnum):
    """How a cell, a kernel or a session ended.

    Attributes:
        ends: what it can be the end of.
        kernel_lives: whether this end leaves the kernel alive; None where that depends on whether the cell ended within
            the grace period of its interrupt, or on whether the kernel or only a process of the cell ran out of memory.
            ``ExecutionResult.kernel_state`` has the actual state: a kernel may also die after its cell ended.
    """

    ends: Ends
    kernel_lives: bool | None

    def __new__(cls, value: str, ends: Ends = Ends.CELL, kernel_lives: bool | None = None) -> Outcome:
        member = str.__new__(cls, value)
        member._value_ = value
        member.ends = ends
        member.kernel_lives = kernel_lives
        return member

    def __repr__(self) -> str:
        """Show the plain string, as JSON and the store have it."""
        return repr(self.value)

    # Of cells only
    OK = "ok", Ends.CELL, True
    ERROR = "error", Ends.CELL, True  # the code raised an exception
    INTERRUPTED = "interrupted", Ends.CELL, True  # by ``manager.interrupt``, or by the end of the orchestrator

    # Of cells, and of kernels that the host killed because their cell ignored the interrupt
    TIMEOUT = "timeout", Ends.CELL | _DEATH, None
    CANCELLED = "cancelled", Ends.CELL | _DEATH, None  # the task that awaited the cell was cancelled
    OUTPUT_LIMIT = "output_limit", Ends.CELL | _DEATH, None

    # Of kernels, and of the cells that ran in them
    OOM = "oom", Ends.CELL | _DEATH, None
    KERNEL_DIED = "kernel_died", Ends.CELL | _DEATH, False
    ENGINE_LOST = "engine_lost", Ends.CELL | _DEATH, False  # the Docker engine does not answer

    # Of sessions: each ended, or sleeps until its agent's kernel is acquired again
    IDLE = "idle", Ends.SESSION, False  # unused for ``idle_timeout_seconds``
    EVICTED = "evicted", Ends.SESSION, False  # another agent needed the kernel
    RESTART = "restart", Ends.SESSION, False  # by ``manager.restart_kernel``
    HIBERNATE = "hibernate", Ends.SESSION, False  # by ``manager.hibernate``
    RECONFIGURED = "reconfigured", Ends.SESSION, False  # the policy, limits or image changed between two starts
    SHUTDOWN = "shutdown", Ends.SESSION, False
    END_SESSION = "end_session", Ends.SESSION, False  # by ``manager.end_session``
    KILLED = "killed", Ends.SESSION, False  # by an operator
    ORCHESTRATOR_LOST = "orchestrator_lost", Ends.SESSION, False  # its process died, and its kernel is gone
    TAKEN_OVER = "taken_over", Ends.SESSION, False  # another process owns it now, while this one was away
    NEVER_STARTED = "never_started", Ends.SESSION, False  # the session never had a kernel
    ASLEEP = "asleep", Ends.SESSION, False  # the session sleeps, and its object was used without acquiring it again

    @property
    def ends_cell(self) -> bool:
        """Whether a cell's result can have it."""
        return Ends.CELL in self.ends

    @property
    def ends_kernel(self) -> bool:
        """Whether a kernel can end by it without being asked to."""
        return Ends.KERNEL in self.ends

    @property
    def ends_session(self) -> bool:
        """Whether a session can lose its kernel by it."""
        return Ends.SESSION in self.ends


def kernel_end(reason: str | None) -> Outcome | None:
    """Return the outcome that a session's end reason names, when the session ended because its kernel did.

    Returns:
        None for any other reason, and for the free text that ``manager.end_session`` takes.
    """
    return _KERNEL_ENDS.get(reason)


_KERNEL_ENDS: Final[dict[str | None, Outcome]] = {outcome.value: outcome for outcome in Outcome if outcome.ends_kernel}


CellOutcome = Literal[
    Outcome.OK,
    Outcome.ERROR,
    Outcome.INTERRUPTED,
    Outcome.TIMEOUT,
    Outcome.CANCELLED,
    Outcome.OUTPUT_LIMIT,
    Outcome.OOM,
    Outcome.KERNEL_DIED,
    Outcome.ENGINE_LOST,
]
KernelEnd = Literal[
    Outcome.TIMEOUT,
    Outcome.CANCELLED,
    Outcome.OUTPUT_LIMIT,
    Outcome.OOM,
    Outcome.KERNEL_DIED,
    Outcome.ENGINE_LOST,
]
Stop = Literal[Outcome.TIMEOUT, Outcome.CANCELLED, Outcome.OUTPUT_LIMIT]
"""Why the host stops a cell, and kills its kernel when the interrupt does not end the cell."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a kernel's container ended.

    Attributes:
        reason: "oom" when the engine saw an out-of-memory kill; "timeout", "cancelled" or "output_limit" when the host
            killed the kernel because its cell ignored the interrupt; "engine_lost" when the engine cannot say; else
            "kernel_died".
        exit_code: of the container's first process; None where the engine could not say.
    """

    reason: KernelEnd
    exit_code: int | None

    @property
    def signal(self) -> str | None:
        """The signal that the exit code stands for, such as "SIGKILL"; None for none."""
        try:
            return signal.Signals((self.exit_code or 0) - 128).name
        except ValueError:
            return None

    def describe(self) -> str:
        """Return how it ended, as the predicate of a sentence about the kernel."""
        if self.reason is Outcome.OOM:
            return f"exceeded its memory limit and was killed (exit code {self.exit_code})"
        if self.signal == "SIGBUS":
            return (
                f"ended (exit code {self.exit_code}, SIGBUS: it used mapped memory for which there was no room, "
                "as when /dev/shm is full; [tmpfs] shm_mb in the policy sets its size)"
            )
        return f"ended (exit code {self.exit_code})"
