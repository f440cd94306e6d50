"""CellOptions: what Jupyter's clients say of a cell beside its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CellOptions:
    """The fields of Jupyter's ``execute_request``. The defaults are those of a cell in a notebook.

    Attributes:
        silent: whether the kernel shows no value of the last expression, and does not count the cell. The session
            counts it.
        store_history: whether the kernel counts the cell, and keeps it in ``In`` and ``Out``.
        user_expressions: names, and expressions that the kernel evaluates after the cell.
    """

    silent: bool = False
    store_history: bool = True
    user_expressions: Mapping[str, str] = field(default_factory=dict)
