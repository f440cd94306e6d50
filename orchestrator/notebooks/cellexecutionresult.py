"""CellExecutionResult: how one cell of a notebook ran. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
