"""NotebookDocument: a whole notebook, as a value. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.notebooks.cell import Cell

MINOR = 5  # of nbformat 4: the first version in which cells have ids


@dataclass(frozen=True, slots=True)
class NotebookDocument:
    """A notebook as it was at one moment. Nothing of it changes.

    Attributes:
        id: the notebook, among those of its session.
        metadata: of the notebook, with ``kernelspec`` and ``language_info``.
        minor: the version of nbformat 4; at least 5.
        extra: fields of the file beside these.
    """

    id: str
    cells: tuple[Cell, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    minor: int = MINOR
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kernel_spec(self) -> Mapping[str, Any]:
        """The kernel that the notebook is for; empty if it does not say."""
        return _mapping(self.metadata.get("kernelspec"))

    @property
    def language_info(self) -> Mapping[str, Any]:
        """The language of its code; empty if it does not say."""
        return _mapping(self.metadata.get("language_info"))

    def as_dict(self) -> dict[str, Any]:
        """Return the notebook in nbformat's form, as a .ipynb file has it."""
        return {
            **self.extra,
            "cells": [cell.as_dict() for cell in self.cells],
            "metadata": dict(self.metadata),
            "nbformat": 4,
            "nbformat_minor": self.minor,
        }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
