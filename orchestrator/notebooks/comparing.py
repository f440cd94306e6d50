"""Compares two notebooks cell by cell. Pure."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.notebooks.cell import Cell
from orchestrator.notebooks.cellmatching import matched
from orchestrator.notebooks.notebookdocument import NotebookDocument

Kind = Literal["added", "removed", "moved", "edited", "metadata", "outputs"]


@dataclass(frozen=True, slots=True)
class CellChange:
    """One difference of a cell.

    Attributes:
        before, after: the cell in either notebook; None where it is not there.
        index: in the second notebook; of a cell that was removed: in the first.
    """

    kind: Kind
    index: int
    before: Cell | None
    after: Cell | None

    def lines(self) -> list[str]:
        """Return the lines of the source that were removed ("-"), added ("+") and kept around them (" ")."""
        old, new = ("" if cell is None else cell.source for cell in (self.before, self.after))
        found = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=2)
        return [line for line in found if not line.startswith(("---", "+++", "@@"))]


def compare(first: NotebookDocument, second: NotebookDocument) -> list[CellChange]:
    """Return what differs, in the order of the second notebook. Run times and execution counts do not count.

    Cells are the same where their ids are. The others are the same where their content is, or between such cells.
    """
    second = _with_ids_of(first, second)
    old = {cell.id: cell for cell in first.cells}
    new = {cell.id for cell in second.cells}
    moved = _moved([cell.id for cell in first.cells if cell.id in new], [c.id for c in second.cells if c.id in old])
    changes: list[CellChange] = []
    for index, cell in enumerate(second.cells):
        before = old.get(cell.id)
        kinds: list[Kind] = ["added"] if before is None else _differences(before, cell)
        if cell.id in moved:
            kinds.insert(0, "moved")
        changes += [CellChange(kind, index, before, cell) for kind in kinds]
    gone = [(index, cell) for index, cell in enumerate(first.cells) if cell.id not in new]
    return [*changes, *(CellChange("removed", index, cell, None) for index, cell in gone)]


def _differences(before: Cell, after: Cell) -> list[Kind]:
    found: list[Kind] = []
    if (before.source, before.cell_type) != (after.source, after.cell_type):
        found.append("edited")
    metadata = [{key: value for key, value in cell.metadata.items() if key != "execution"} for cell in (before, after)]
    if metadata[0] != metadata[1] or before.extra != after.extra:
        found.append("metadata")
    shown = [
        [{key: value for key, value in output.items() if key != "execution_count"} for output in cell.outputs]
        for cell in (before, after)
    ]
    return [*found, "outputs"] if shown[0] != shown[1] else found


def _with_ids_of(first: NotebookDocument, second: NotebookDocument) -> NotebookDocument:
    """Return the second notebook, whose cells have the ids of the same cells of the first one."""
    known = {cell.id for cell in first.cells}
    common = known & {cell.id for cell in second.cells}
    left = [cell for cell in first.cells if cell.id not in common]
    new = [cell for cell in second.cells if cell.id not in common]
    pairs = matched(*([(cell.cell_type.value, cell.source) for cell in side] for side in (left, new)))
    names = {new[number].id: left[earlier].id for number, earlier in pairs.items()}
    return replace(second, cells=tuple(replace(cell, id=names.get(cell.id, cell.id)) for cell in second.cells))


def _moved(old: list[str], new: list[str]) -> set[str]:
    blocks = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    stayed = {name for block in blocks for name in new[block.b : block.b + block.size]}
    return set(new) - stayed
