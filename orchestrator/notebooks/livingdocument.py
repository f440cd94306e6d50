"""LivingDocument: a notebook that changes: its cells, and which of them are stale. Pure: it runs nothing.

A code cell is stale if it has not run in the session since it was edited, if a cell above it is stale or ran later than
it, or if a code cell above it was added, edited, moved or deleted since it ran. Where no cell is stale, the outputs are
those of a run from top to bottom.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from orchestrator.errors import CellNotFoundError, InvalidInputError, InvalidPositionError, NotebookError
from orchestrator.limits import MIB
from orchestrator.notebooks.cell import Cell, CellType
from orchestrator.notebooks.celloutputs import CellOutputs, times
from orchestrator.notebooks.notebookdocument import NotebookDocument
from orchestrator.output.amounts import memory_of
from orchestrator.output.events import ExecutionResult

MOST_CELLS = 10_000
LONGEST_SOURCE = MIB  # characters of one cell
MOST_SOURCE = 16 * MIB  # characters of all cells
MOST_OUTPUT = 32 * MIB  # bytes of all outputs in memory
_LEFT_OUT = "[The output was left out: the notebook holds as much output as it may.]\n"


@dataclass(slots=True)
class _Run:
    """The last run of a cell.

    Attributes:
        number: of the run, among all runs of this notebook.
        outdated: whether the cell, or one above it, was changed since.
        session_cell: how many cells the session had run at its end; None while it runs.
    """

    number: int
    outdated: bool = False
    session_cell: int | None = None


class LivingDocument:
    """A notebook that changes."""

    def __init__(self, document: NotebookDocument) -> None:
        self._document = document
        self._cells = list(document.cells)
        self._runs: dict[str, _Run] = {}
        self._displays: dict[str, tuple[str | None, ...]] = {}
        self._sizes: dict[str, int] = {}  # bytes of each cell's outputs
        self._run_count = 0
        self._measure(self._cells)

    @property
    def cells(self) -> Sequence[Cell]:
        return self._cells

    @property
    def document(self) -> NotebookDocument:
        """The notebook as it is now."""
        return replace(self._document, cells=tuple(self._cells))

    def index_of(self, cell_id: str) -> int:
        """Return a cell's index.

        Raises:
            CellNotFoundError: there is no such cell.
        """
        for index, cell in enumerate(self._cells):
            if cell.id == cell_id:
                return index
        raise CellNotFoundError.of(cell_id)

    def cell(self, cell_id: str) -> Cell:
        """Return a cell.

        Raises:
            CellNotFoundError: there is no such cell.
        """
        return self._cells[self.index_of(cell_id)]

    def add(
        self,
        source: str,
        cell_type: CellType = CellType.CODE,
        position: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Cell:
        """Add a cell before the one at ``position``; None: at the end.

        Raises:
            InvalidPositionError: the position is below 0, or above the number of cells.
            InvalidInputError: the source cannot be used.
            NotebookError: the notebook has as many cells as it may, or as much source.
        """
        at = self._position(position, len(self._cells))
        if len(self._cells) >= MOST_CELLS:
            raise NotebookError(f"a notebook has at most {MOST_CELLS:,} cells.", remedy="Begin another notebook.")
        self._check_source(source)
        cell = Cell(self._new_id(), cell_type, source, dict(metadata or {}))
        self._cells.insert(at, cell)
        self._changed_at(at, cell)
        return cell

    def edit(self, cell_id: str, source: str, *, cell_type: CellType | None = None, clear_outputs: bool = True) -> Cell:
        """Replace a cell's source, and its type if one is given. The same source and type change nothing.

        Raises:
            CellNotFoundError: there is no such cell.
            InvalidInputError, NotebookError: see ``add``.
        """
        index = self.index_of(cell_id)
        before = self._cells[index]
        kind = cell_type or before.cell_type
        if (source, kind) == (before.source, before.cell_type):
            return before
        self._check_source(source, instead_of=before.source)
        cell = replace(before, source=source, cell_type=kind)
        self._cells[index] = cell
        if clear_outputs or kind is not CellType.CODE:
            cell = self._without_run(cell)
        self._changed_at(index, before, cell)
        return cell

    def delete(self, cell_id: str) -> Cell:
        """Remove a cell, and return it.

        Raises:
            CellNotFoundError: there is no such cell.
        """
        index = self.index_of(cell_id)
        cell = self._cells.pop(index)
        for known in (self._runs, self._displays, self._sizes):
            known.pop(cell_id, None)
        self._changed_at(index, cell)
        return cell

    def move(self, cell_id: str, position: int) -> None:
        """Move a cell, such that ``position`` is its index then.

        Raises:
            CellNotFoundError: there is no such cell.
            InvalidPositionError: the position is below 0, or not below the number of cells.
        """
        index = self.index_of(cell_id)
        at = self._position(position, len(self._cells) - 1)
        if at != index:
            cell = self._cells.pop(index)
            self._cells.insert(at, cell)
            self._changed_at(min(index, at), cell)

    def begin(self, cell_id: str) -> str:
        """Note that a cell begins to run. Return its source.

        Raises:
            CellNotFoundError: there is no such cell.
        """
        source = self.cell(cell_id).source
        self._run_count += 1
        self._runs[cell_id] = _Run(self._run_count)
        return source

    def finish(self, cell_id: str, result: ExecutionResult, ended: datetime, session_cell: int) -> CellOutputs:
        """Give a cell the outputs of its run, and earlier displays the content that it gave them.

        A cell that was deleted meanwhile stays so.

        Args:
            session_cell: how many cells the session has run.

        Returns:
            The outputs as they stand in the notebook.
        """
        made = CellOutputs.of(result)
        self._update_displays(cell_id, made.updates or {})
        if cell_id not in (cell.id for cell in self._cells):
            return made
        room = MOST_OUTPUT - sum(self._sizes.values()) + self._sizes.get(cell_id, 0)
        if memory_of(made.outputs) > room:
            made = CellOutputs(({"output_type": "stream", "name": "stderr", "text": _LEFT_OUT},), (None,))
        cell = self.cell(cell_id)
        if cell.cell_type is CellType.CODE:
            metadata = {**cell.metadata, "execution": times(result, ended)}
            self._replace(replace(cell, metadata=metadata, execution_count=result.execution_count), made)
            if cell_id in self._runs:
                self._runs[cell_id].session_cell = session_cell
        return made

    def abandon(self, cell_id: str) -> None:
        """Note that a run has no result: the cell is stale."""
        if cell_id in self._runs:
            self._runs[cell_id].outdated = True

    def forget_runs(self, after: int = -1) -> None:
        """Note that the session's variables are gone that its cells after number ``after`` made."""
        for run in self._runs.values():
            if run.session_cell is not None and run.session_cell > after:
                run.outdated = True

    def stale(self) -> list[str]:
        """Return the ids of the cells that are stale, in their order."""
        found: list[str] = []
        last = 0
        for cell in self._cells:
            if not cell.is_runnable:
                continue
            run = self._runs.get(cell.id)
            if found or run is None or run.outdated or run.number < last:
                found.append(cell.id)
            last = last if run is None else max(last, run.number)
        return found

    def adopt(self, document: NotebookDocument) -> None:
        """Become another state of the same notebook. Code that differs makes cells stale, from the first such cell on.

        Cells whose outputs are the same keep the ids of their displays.
        """
        before = {cell.id: cell for cell in self._cells}
        ran = [(cell.id, cell.source) for cell in self._cells if cell.cell_type is CellType.CODE]
        runs = [(cell.id, cell.source) for cell in document.cells if cell.cell_type is CellType.CODE]
        self._document, self._cells = document, list(document.cells)
        same = next((n for n, (old, new) in enumerate(zip(ran, runs, strict=False)) if old != new), len(ran))
        self._outdate(cell_id for cell_id, _source in runs[same:])
        gone = [cell_id for cell_id in before if cell_id not in {cell.id for cell in document.cells}]
        kept = {cell.id for cell in document.cells if cell.id in before and before[cell.id].outputs == cell.outputs}
        for cell_id in gone:
            self._runs.pop(cell_id, None)
        self._displays = {cell_id: ids for cell_id, ids in self._displays.items() if cell_id in kept}
        self._sizes = {}
        self._measure(self._cells)

    def _position(self, position: int | None, last: int) -> int:
        if position is None:
            return last
        if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position <= last:
            raise InvalidPositionError(
                f"there is no position {str(position)[:40]}: a position is a number from 0 to {max(last, 0)}.",
                position=position if isinstance(position, int) else -1,
                total=len(self._cells),
            )
        return position

    def _check_source(self, source: str, instead_of: str = "") -> None:
        if not isinstance(source, str):
            raise InvalidInputError(f"a cell's source is text, not {type(source).__name__}.")
        try:
            source.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"the source has a lone surrogate at character {error.start}.") from None
        if len(source) > LONGEST_SOURCE:
            raise InvalidInputError(f"the source has {len(source):,} characters; a cell may have {LONGEST_SOURCE:,}.")
        if sum(len(cell.source) for cell in self._cells) - len(instead_of) + len(source) > MOST_SOURCE:
            raise NotebookError(f"a notebook has at most {MOST_SOURCE:,} characters.", remedy="Begin another notebook.")

    def _new_id(self) -> str:
        taken = {cell.id for cell in self._cells}
        return next(name for name in iter(lambda: secrets.token_hex(4), "") if name not in taken)

    def _changed_at(self, index: int, *cells: Cell) -> None:
        """Note that a cell at ``index`` is another one than before, which makes the code from there on stale."""
        if any(cell.cell_type is CellType.CODE for cell in cells):
            self._outdate(cell.id for cell in self._cells[index:])

    def _outdate(self, cell_ids: Iterable[str]) -> None:
        for cell_id in cell_ids:
            if cell_id in self._runs:
                self._runs[cell_id].outdated = True

    def _without_run(self, cell: Cell) -> Cell:
        metadata = {key: value for key, value in cell.metadata.items() if key != "execution"}
        return self._replace(replace(cell, metadata=metadata, execution_count=None), CellOutputs())

    def _replace(self, cell: Cell, made: CellOutputs) -> Cell:
        cell = replace(cell, outputs=made.outputs)
        self._cells[self.index_of(cell.id)] = cell
        self._displays[cell.id] = made.display_ids
        self._measure([cell])
        return cell

    def _measure(self, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self._sizes[cell.id] = memory_of(cell.outputs)

    def _update_displays(self, cell_id: str, updates: Mapping[str, Mapping[str, Any]]) -> None:
        """Give displays of other cells new content, as far as the notebook has room for it."""
        for cell, shown in self._displayed(cell_id):
            made = shown.updated(updates)
            growth = 0 if made is shown else memory_of(made.outputs) - self._sizes[cell.id]
            if made is not shown and sum(self._sizes.values()) + max(0, growth) <= MOST_OUTPUT:
                self._replace(cell, made)

    def _displayed(self, but: str) -> Iterator[tuple[Cell, CellOutputs]]:
        for cell in list(self._cells):
            ids = self._displays.get(cell.id, ())
            if cell.id != but and len(ids) == len(cell.outputs) and any(ids):
                yield cell, CellOutputs(cell.outputs, ids)
