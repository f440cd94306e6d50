"""LivingDocument: a notebook that changes: its cells, and which of them are stale. Pure: it runs nothing.

A code cell is stale if it has not run in the session as it is now, below the code that is above it now; if a cell
above it is stale or ran later; or if the kernel lost what it made. Where no cell is stale, the outputs are those of a
run from top to bottom.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from orchestrator.errors import CellNotFoundError, InvalidInputError, InvalidPositionError, NotebookError
from orchestrator.notebooks.cell import Cell, CellType
from orchestrator.notebooks.celloutputs import CellOutputs, times
from orchestrator.notebooks.notebookbounds import BOUNDS, NotebookBounds
from orchestrator.notebooks.notebookdocument import NotebookDocument
from orchestrator.output.amounts import memory_of
from orchestrator.output.events import ExecutionResult

_LEFT_OUT = "[The output was left out: the notebook holds as much output as it may.]\n"


@dataclass(slots=True)
class _Run:
    """The last run of a cell.

    Attributes:
        number: of the run, among all runs of this notebook.
        code: the hash of the code from the top to this cell, when it began.
        session_cell: how many cells the session had run at its end; None while it runs, and if it had no result.
        is_lost: whether the kernel lost what it made.
    """

    number: int
    code: int
    session_cell: int | None = None
    is_lost: bool = False

    def holds(self, code: int) -> bool:
        """Return whether it has a result, of this code, which the kernel still has."""
        return self.session_cell is not None and not self.is_lost and self.code == code


class LivingDocument:
    """A notebook that changes."""

    def __init__(self, document: NotebookDocument, bounds: NotebookBounds = BOUNDS) -> None:
        self._document = document
        self._bounds = bounds
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
        if len(self._cells) >= self._bounds.cells:
            raise NotebookError(
                f"a notebook has at most {self._bounds.cells:,} cells.", remedy="Begin another notebook."
            )
        self._check_source(source)
        cell = Cell(self._new_id(), cell_type, source, dict(metadata or {}))
        self._cells.insert(at, cell)
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
            return self._without_outputs(cell)
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
        return cell

    def move(self, cell_id: str, position: int) -> None:
        """Move a cell, such that ``position`` is its index then.

        Raises:
            CellNotFoundError: there is no such cell.
            InvalidPositionError: the position is below 0, or not below the number of cells.
        """
        index = self.index_of(cell_id)
        at = self._position(position, len(self._cells) - 1)
        self._cells.insert(at, self._cells.pop(index))

    def begin(self, cell_id: str) -> str:
        """Note that a cell that can run begins to. Return its source.

        Raises:
            CellNotFoundError: there is no such cell.
        """
        index = self.index_of(cell_id)
        *_, (_, code) = self._code_hashes(self._cells[: index + 1])
        self._run_count += 1
        self._runs[cell_id] = _Run(self._run_count, code)
        return self._cells[index].source

    def finish(self, cell_id: str, result: ExecutionResult, ended: datetime, session_cell: int) -> CellOutputs:
        """Give a cell the outputs of its run, and earlier displays the content that it gave them.

        A cell that was deleted meanwhile stays so.

        Args:
            session_cell: how many cells the session has run.

        Returns:
            The outputs as they stand in the notebook.
        """
        made = CellOutputs.of(result)
        self._update_displays(made.updates or {})
        if cell_id not in (cell.id for cell in self._cells):
            return made
        room = self._bounds.output_bytes - sum(self._sizes.values()) + self._sizes.get(cell_id, 0)
        if memory_of(made.outputs) > room:
            made = CellOutputs(({"output_type": "stream", "name": "stderr", "text": _LEFT_OUT},), (None,))
        cell = self.cell(cell_id)
        if cell.cell_type is CellType.CODE:
            metadata = {**cell.metadata, "execution": times(result, ended)}
            self._replace(replace(cell, metadata=metadata, execution_count=result.execution_count), made)
            if cell_id in self._runs:
                self._runs[cell_id].session_cell = session_cell
        return made

    def forget_runs(self, after: int = -1) -> None:
        """Note that the session's variables are gone that its cells after number ``after`` made."""
        for run in self._runs.values():
            if run.session_cell is not None and run.session_cell > after:
                run.is_lost = True

    def stale(self) -> list[str]:
        """Return the ids of the cells that are stale, in their order."""
        found: list[str] = []
        last = 0
        for cell, code in self._code_hashes(self._cells):
            run = self._runs.get(cell.id)
            if found or run is None or not run.holds(code) or run.number < last:
                found.append(cell.id)
            last = last if run is None else max(last, run.number)
        return found

    def adopt(self, document: NotebookDocument) -> None:
        """Become another state of the same notebook. Cells with the same outputs keep the ids of their displays."""
        before = {cell.id: cell.outputs for cell in self._cells}
        self._document, self._cells = document, list(document.cells)
        left = {cell.id for cell in document.cells}
        kept = {cell.id for cell in document.cells if before.get(cell.id) == cell.outputs}
        self._runs = {cell_id: run for cell_id, run in self._runs.items() if cell_id in left}
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
        if len(source) > self._bounds.cell_source:
            raise InvalidInputError(
                f"the source has {len(source):,} characters; a cell may have {self._bounds.cell_source:,}."
            )
        if sum(len(cell.source) for cell in self._cells) - len(instead_of) + len(source) > self._bounds.source:
            raise NotebookError(
                f"a notebook has at most {self._bounds.source:,} characters.", remedy="Begin another notebook."
            )

    def _new_id(self) -> str:
        taken = {cell.id for cell in self._cells}
        return next(name for name in iter(lambda: secrets.token_hex(4), "") if name not in taken)

    @staticmethod
    def _code_hashes(cells: Iterable[Cell]) -> Iterator[tuple[Cell, int]]:
        """Yield each cell that can run, with the hash of the code from the first cell to it."""
        code = 0
        for cell in cells:
            if cell.is_runnable:
                code = hash((code, cell.id, cell.source))
                yield cell, code

    def _without_outputs(self, cell: Cell) -> Cell:
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

    def _update_displays(self, updates: Mapping[str, Mapping[str, Any]]) -> None:
        """Give displays of earlier runs new content, as far as the notebook has room for it."""
        for cell, shown in self._displayed():
            made = shown.updated(updates)
            growth = 0 if made is shown else memory_of(made.outputs) - self._sizes[cell.id]
            if made is not shown and sum(self._sizes.values()) + max(0, growth) <= self._bounds.output_bytes:
                self._replace(cell, made)

    def _displayed(self) -> Iterator[tuple[Cell, CellOutputs]]:
        for cell in list(self._cells):
            ids = self._displays.get(cell.id, ())
            if len(ids) == len(cell.outputs) and any(ids):
                yield cell, CellOutputs(cell.outputs, ids)
