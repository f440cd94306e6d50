"""Merges two states of a notebook that came from a common one: the session's, and that of the file. Pure.

Cells are the same where their ids are. What each side changed is kept. Where both changed one thing differently, the
merge fails and names the cells. Outputs are not edits: where both ran a cell, the session's run stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from orchestrator.errors import NotebookConflictError
from orchestrator.notebooks.cell import Cell
from orchestrator.notebooks.notebookdocument import NotebookDocument

T = TypeVar("T")
_MISSING: Any = object()
_RUN = "execution"  # metadata that belongs to a run
_DERIVED = frozenset(("kernelspec", "language_info"))  # whatever opens a notebook writes them anew


class _ConflictError(Exception):
    """Both sides changed the same thing differently."""


def merge(base: NotebookDocument, ours: NotebookDocument, theirs: NotebookDocument, path: str) -> NotebookDocument:
    """Return a notebook with the changes of both sides.

    Args:
        path: of the file, for the error.

    Raises:
        NotebookConflictError: both sides changed the same cells; the error names them.
    """
    cells: dict[str, Cell] = {}
    conflicts = []
    known = [{cell.id: cell for cell in side.cells} for side in (base, ours, theirs)]
    for name in dict.fromkeys([*known[1], *known[2]]):
        try:
            cell = _merged_cell(*(side.get(name) for side in known))
        except _ConflictError:
            conflicts.append(name)
        else:
            cells |= {} if cell is None else {name: cell}
    orders = [[cell.id for cell in side.cells if cell.id in cells] for side in (base, ours, theirs)]
    order, moved = _merged_order(*orders)
    if conflicts or moved:
        raise _conflict([*conflicts, *moved], path)
    return replace(
        theirs,
        id=ours.id,
        cells=tuple(cells[name] for name in order),
        metadata=_merged_notebook_metadata(base.metadata, ours.metadata, theirs.metadata),
        minor=max(ours.minor, theirs.minor),
    )


def _conflict(cells: Sequence[str], path: str) -> NotebookConflictError:
    named = ", ".join(cells[:10]) + (f", and {len(cells) - 10} more" if len(cells) > 10 else "")
    return NotebookConflictError(
        f"{path} was changed by others, and so were the same cells here: {named}. Nothing was written.",
        path=path,
        cells=tuple(cells),
        remedy="Save under another path, or open the file again and make the edits there.",
    )


def _merged_cell(base: Cell | None, ours: Cell | None, theirs: Cell | None) -> Cell | None:
    """Return the cell that both sides lead to; None: it is deleted.

    Raises:
        _ConflictError: there is none.
    """
    if ours is None or theirs is None:
        kept = ours or theirs
        if base is None or kept is None:
            return kept
        if _edited(base, kept):  # one side deleted what the other one edited
            raise _ConflictError
        return None
    if base is None:  # both sides have added it
        if _edited(ours, theirs):
            raise _ConflictError
        return ours
    source = _pick(base.source, ours.source, theirs.source)
    kind = _pick(base.cell_type, ours.cell_type, theirs.cell_type)
    run = _run_of(base, ours, theirs, source)
    metadata = _merged_mapping(_without_run(base), _without_run(ours), _without_run(theirs))
    if _RUN in run.metadata:
        metadata[_RUN] = run.metadata[_RUN]
    extra = _merged_mapping(base.extra, ours.extra, theirs.extra)
    return replace(run, cell_type=kind, source=source, metadata=metadata, extra=extra)


def _run_of(base: Cell, ours: Cell, theirs: Cell, source: str) -> Cell:
    """Return the side whose outputs stay: that of the source; where both have it, the one that ran, first our own."""
    if ours.source != theirs.source:
        return ours if ours.source == source else theirs
    return theirs if (ours.outputs, ours.execution_count) == (base.outputs, base.execution_count) else ours


def _edited(before: Cell, after: Cell) -> bool:
    return (before.source, before.cell_type, _without_run(before), before.extra) != (
        after.source,
        after.cell_type,
        _without_run(after),
        after.extra,
    )


def _without_run(cell: Cell) -> dict[str, Any]:
    return {key: value for key, value in cell.metadata.items() if key != _RUN}


def _pick(base: T, ours: T, theirs: T) -> T:
    if ours == theirs or theirs == base:
        return ours
    if ours == base:
        return theirs
    raise _ConflictError


def _merged_mapping(base: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    keys = dict.fromkeys([*ours, *theirs])
    picked = {key: _pick(*(side.get(key, _MISSING) for side in (base, ours, theirs))) for key in keys}
    return {key: value for key, value in picked.items() if value is not _MISSING}


def _merged_notebook_metadata(
    base: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    """Merge the notebook's own metadata. The file's wins: here nothing but ``create_notebook`` sets any."""
    added = {key: value for key, value in ours.items() if key not in base and key not in theirs}
    kept = {key: value for key, value in ours.items() if key in _DERIVED and key not in theirs}
    return {**added, **kept, **theirs}


def _merged_order(base: list[str], ours: list[str], theirs: list[str]) -> tuple[list[str], list[str]]:
    """Return the order of the merged cells, and the cells that both sides moved differently."""
    common = set(base) & set(ours) & set(theirs)
    was, our, their = ([name for name in side if name in common] for side in (base, ours, theirs))
    if our == their or their == was:
        return _with_added(ours, theirs), []
    if our == was:
        return _with_added(theirs, ours), []
    return [], [name for name, other in zip(our, their, strict=True) if name != other]


def _with_added(order: list[str], other: list[str]) -> list[str]:
    """Return an order with the cells that only the other side has, each after the cell that it follows there."""
    merged, known = list(order), set(order)
    last: str | None = None
    for name in other:
        if name not in known:
            merged.insert(0 if last is None else merged.index(last) + 1, name)
        last = name
    return merged
