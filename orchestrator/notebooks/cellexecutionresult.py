"""CellExecutionResult: how one cell of a notebook ran. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from orchestrator.outcome import Outcome
from orchestrator.output.events import ErrorOutput, ExecutionResult


@dataclass(frozen=True, slots=True)
class CellExecutionResult:
    """How one cell ran. An error of its code is a result.

    Attributes:
        cell_id: the cell; "" where it was not kept in the notebook.
        success: whether its outcome is "ok".
        outputs: in nbformat's form, as they stand in the notebook.
        error: the exception, or why the kernel ended; None on success.
        execution_count: the kernel's number for this run; None where it reported none, or the cell is no code.
        execution_time_ms: milliseconds on the host's clock.
        result: all that is known of the run; None for a cell that is no code.
    """

    cell_id: str
    success: bool
    outputs: tuple[Mapping[str, Any], ...] = ()
    error: ErrorOutput | None = None
    execution_count: int | None = None
    execution_time_ms: float = 0.0
    result: ExecutionResult | None = None

    @classmethod
    def of(cls, cell_id: str, result: ExecutionResult, outputs: Sequence[Mapping[str, Any]]) -> Self:
        """Return how a cell of this id ran.

        Args:
            outputs: in nbformat's form.
        """
        success = result.outcome == "ok"
        error = None if success else result.error
        milliseconds = round(result.duration_s * 1000, 1)
        return cls(cell_id, success, tuple(outputs), error, result.execution_count, milliseconds, result)

    @property
    def ends_all(self) -> bool:
        """Whether no cell should run after it: it was interrupted, or its kernel ended."""
        return self.result is not None and (
            self.result.kernel_state == "dead" or self.result.outcome == Outcome.INTERRUPTED
        )
