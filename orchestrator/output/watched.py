"""What those who watch a session learn of its cells, beside their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.output.events import OutputEvent
from orchestrator.output.result import ExecutionResult


@dataclass(frozen=True, slots=True)
class CellBegun:
    """The kernel says that it has begun the cell. A silent cell is not announced.

    Attributes:
        execution_count: the number that the kernel gave the cell; None where it named none.
    """

    execution_count: int | None


@dataclass(frozen=True, slots=True)
class CellStarted:
    """A cell of the session runs."""

    code: str
    execution_count: int | None


@dataclass(frozen=True, slots=True)
class CellEnded:
    """A cell of the session is over, however it ended.

    Attributes:
        extras: see ``Reply``.
    """

    result: ExecutionResult
    extras: Mapping[str, Any] = field(default_factory=dict)


CellWatcher = Callable[[CellStarted | OutputEvent | CellEnded], None]
