"""Gives the displays of a session the last content that a later cell gave them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.limits import MIB
from orchestrator.output.amounts import memory_of

# By how many bytes a session may grow: a large update of many displays of one id would make a notebook of gigabytes.
# After that, the older displays keep the content that their own cells gave them.
_MOST_GROWTH = 64 * MIB


def with_last_displays(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results of a session's cells, in their order, with the last content of each display.

    A display of one id shows what a later cell's ``updates`` have for the id, or a later cell's display of the same id.
    The results that are passed in do not change.
    """
    last = _Last()
    shown = []
    for result in reversed(results):
        if any(output.get("display_id") in last.content for output in result.get("outputs", [])):
            result = {**result, "outputs": [last.shown(output) for output in reversed(result["outputs"])][::-1]}
        shown.append(result)
        last.note([*reversed(result.get("outputs", [])), *result.get("updates", [])])
    return shown[::-1]


class _Last:
    """The content of each id in the cells after the one that is looked at: ``data`` and ``metadata``."""

    def __init__(self) -> None:
        self.content: dict[str | None, dict[str, Any]] = {}
        self._sizes: dict[str, int] = {}
        self._growth = 0

    def shown(self, output: dict[str, Any]) -> dict[str, Any]:
        """Return an output with the content that its id has later."""
        display_id = output.get("display_id")
        if display_id not in self.content:
            return output
        self._growth += self._size(display_id)
        return output if self._growth > _MOST_GROWTH else {**output, **self.content[display_id]}

    def note(self, displays: Iterable[dict[str, Any]]) -> None:
        """Note a cell's displays and updates, unless a later cell has their ids. The first one of an id counts."""
        for display in displays:
            display_id = display.get("display_id")
            if display_id is not None and display_id not in self.content:
                self.content[display_id] = {"data": display["data"], "metadata": display["metadata"]}

    def _size(self, display_id: str | None) -> int:
        if display_id not in self._sizes:
            self._sizes[str(display_id)] = memory_of(self.content[display_id])
        return self._sizes[str(display_id)]
