"""CellSelector: which cells of a notebook are meant. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import CellNotFoundError, InvalidPositionError
from orchestrator.notebooks.cell import Cell, CellType


@dataclass(frozen=True, slots=True)
class CellSelector:
    """Selects the cells that meet every condition that is given.

    Attributes:
        cell_ids: these cells.
        cell_types: cells of these types.
        tag_filter: cells with at least one of these tags.
        metadata_filter: cells whose metadata has these values.
        index_range: the first and the last index, both included. A last one beyond the end means the end.
    """

    cell_ids: Sequence[str] | None = None
    cell_types: Sequence[CellType | str] | None = None
    tag_filter: Sequence[str] | None = None
    metadata_filter: Mapping[str, Any] | None = None
    index_range: tuple[int, int] | None = None

    def select(self, cells: Sequence[Cell]) -> list[tuple[int, Cell]]:
        """Return the selected cells with their indexes, in the order of the notebook.

        Raises:
            CellNotFoundError: one of ``cell_ids`` is not there.
            InvalidPositionError: the range begins outside of the notebook, or ends before it begins.
            InvalidInputError: there is no such cell type.
        """
        first, last = _bounds(self.index_range, len(cells))
        types = None if self.cell_types is None else {CellType.of(name) for name in self.cell_types}
        if self.cell_ids is not None:
            known = {cell.id for cell in cells}
            for cell_id in self.cell_ids:
                if cell_id not in known:
                    raise CellNotFoundError.of(cell_id)
        return [
            (index, cell)
            for index, cell in enumerate(cells[first : last + 1], start=first)
            if (self.cell_ids is None or cell.id in self.cell_ids) and (types is None or cell.cell_type in types)
            if self._has_tag(cell) and self._has_metadata(cell)
        ]

    def _has_tag(self, cell: Cell) -> bool:
        tags = cell.metadata.get("tags")
        return self.tag_filter is None or (
            isinstance(tags, list) and any(tag in self.tag_filter for tag in tags if isinstance(tag, str))
        )

    def _has_metadata(self, cell: Cell) -> bool:
        missing = object()
        return all(cell.metadata.get(key, missing) == value for key, value in (self.metadata_filter or {}).items())


def _bounds(index_range: tuple[int, int] | None, total: int) -> tuple[int, int]:
    if index_range is None:
        return 0, total - 1
    first, last = index_range
    if not 0 <= first <= max(0, total - 1) or last < first:
        raise InvalidPositionError(
            f"there are no cells {first} to {last}: the notebook has {total}.", position=first, total=total
        )
    return first, min(last, total - 1)
