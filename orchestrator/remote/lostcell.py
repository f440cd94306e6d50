"""The result of a cell whose node was lost. Pure."""

from __future__ import annotations

from orchestrator.errors import NodeLostError
from orchestrator.outcome import Outcome
from orchestrator.output.events import ErrorOutput, ExecutionResult


def lost_result(lost: NodeLostError, duration_s: float, runtime: str) -> ExecutionResult:
    """Return what is known of a cell that ran when the lease of its node ended: that its kernel is gone.

    It was not run again. What it did before, and whether it came to its end, is not known here: its row in the
    session's history says so, if the node could still write it.
    """
    return ExecutionResult(
        status="error",
        outcome=Outcome.KERNEL_DIED,
        outputs=(),
        error=ErrorOutput("KernelDied", f"{lost.message} The cell was not run again; its outputs are not known."),
        msg_id="",
        execution_count=None,
        duration_s=duration_s,
        truncated=None,
        kernel_state="dead",
        runtime=runtime,
    )
