"""NotebookBounds: how large a notebook may be. What it holds comes from sandboxes, models and files. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.limits import MIB


@dataclass(frozen=True, slots=True)
class NotebookBounds:
    """The bounds of one notebook.

    Attributes:
        cells: how many it may have.
        cell_source: characters of one cell.
        source: characters of all cells.
        output_bytes: of all outputs, in memory. Output beyond it is left out; the session's history has it.
    """

    cells: int = 10_000
    cell_source: int = MIB
    source: int = 16 * MIB
    output_bytes: int = 32 * MIB


BOUNDS = NotebookBounds()
