"""Cell: one cell of a notebook, as a value. Pure.

Outputs are in nbformat's form. They come from a sandbox or from a file: show them, never run or render them unescaped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.errors import InvalidInputError


class CellType(StrEnum):
    """The kinds of cells that a notebook has."""

    CODE = "code"
    MARKDOWN = "markdown"
    RAW = "raw"

    @classmethod
    def of(cls, name: str) -> CellType:
        """Return the type of this name.

        Raises:
            InvalidInputError: there is none.
        """
        try:
            return cls(name)
        except ValueError:
            raise InvalidInputError(
                f"there is no cell type {str(name)[:40]!r}.", remedy=f"There are: {', '.join(cls)}."
            ) from None


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell. Nothing of it changes in place.

    Attributes:
        id: unique in its notebook; 1 to 64 letters, digits, hyphens and underscores.
        metadata: as in the file; ``execution`` has the times of the last run, on the host's clock.
        execution_count: the kernel's number for its last run; None: it has not run, or is no code.
        outputs: in nbformat's form.
        extra: fields of the file beside these, such as ``attachments``.
    """

    id: str
    cell_type: CellType
    source: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    execution_count: int | None = None
    outputs: tuple[Mapping[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_runnable(self) -> bool:
        """Whether it is code, and not empty."""
        return self.cell_type is CellType.CODE and bool(self.source.strip())

    def as_dict(self) -> dict[str, Any]:
        """Return the cell in nbformat's form."""
        form = {
            **self.extra,
            "id": self.id,
            "cell_type": self.cell_type.value,
            "metadata": dict(self.metadata),
            "source": self.source,
        }
        if self.cell_type is CellType.CODE:
            form |= {"execution_count": self.execution_count, "outputs": [dict(output) for output in self.outputs]}
        return form
