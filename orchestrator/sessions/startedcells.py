"""StartedCells: the cells of ``start_code`` by id: all that run, and of those that have ended as many as fit."""

from __future__ import annotations

import asyncio
from functools import partial

from orchestrator.errors import InvalidInputError
from orchestrator.limits import KIB, MIB
from orchestrator.output.events import ExecutionResult
from orchestrator.sessions.cellhandle import RunningCell
from orchestrator.sessions.kept import Kept

_CELLS = 1000  # that have ended
_RESULTS = 64 * MIB  # bytes of their outputs, or of four results where those may be larger
_EVENTS = 32 * MIB  # bytes of their events, which are forgotten before the cells
_EVENT = KIB  # bytes that an event counts: the garbage collector looks at each, and 100,000 took it 35 ms


class StartedCells:
    """The cells of one manager.

    Args:
        largest: bytes of one cell's outputs that are kept at most.
    """

    def __init__(self, largest: int) -> None:
        self._cells: dict[str, RunningCell] = {}
        self._with_events: Kept[RunningCell] = Kept(_CELLS, _EVENTS)
        self._ended: Kept[RunningCell] = Kept(_CELLS, max(_RESULTS, 4 * largest))

    def add(self, cell: RunningCell) -> None:
        """Take a cell in. It stays while it runs."""
        self._cells[cell.id] = cell
        cell.when_over(partial(self._keep, cell))

    def find(self, cell_id: str) -> RunningCell:
        """Return a cell.

        Raises:
            InvalidInputError: there is none, or it was forgotten.
        """
        if cell_id not in self._cells:
            raise InvalidInputError(f"there is no started cell {cell_id!r}.")
        return self._cells[cell_id]

    def _keep(self, cell: RunningCell, running: asyncio.Task[ExecutionResult]) -> None:
        """Called when a cell is over."""
        group = cell.session.lease_request.group
        for old in self._ended.add(cell, group, _size(running)):
            del self._cells[old.id]
            old.forget()
        for old in self._with_events.add(cell, group, cell.log_bytes + _EVENT * cell.log_events):
            old.forget_events()


def _size(running: asyncio.Task[ExecutionResult]) -> int:
    """Return how many bytes of outputs the result of a cell has."""
    return 0 if running.cancelled() or running.exception() is not None else running.result().kept_bytes
