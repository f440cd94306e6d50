"""MimeFilter: removes the mime types that a policy does not allow from what a cell displays. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from orchestrator.output.events import DisplayData, ExecuteResult, OutputEvent, UpdateDisplayData

_MOST = 20  # names of removed mime types that are kept
_LONGEST = 100  # characters of each


class MimeFilter:
    """Filters the events of one cell.

    Args:
        passes: returns whether the policy allows a mime type.
    """

    def __init__(self, passes: Callable[[str], bool]) -> None:
        self._passes = passes
        self._removed: dict[str, None] = {}

    @property
    def removed(self) -> tuple[str, ...]:
        """The mime types that were removed, each once, 20 at most."""
        return tuple(self._removed)

    def filter(self, event: OutputEvent) -> OutputEvent:
        """Return the event without the mime types that the policy does not allow; text/plain always stays."""
        if not isinstance(event, DisplayData | UpdateDisplayData | ExecuteResult):
            return event
        refused = [mime for mime in event.data if mime != "text/plain" and not self._passes(mime)]
        if not refused:
            return event
        for mime in refused[: _MOST - len(self._removed)]:
            self._removed[mime[:_LONGEST]] = None
        return replace(event, data={mime: item for mime, item in event.data.items() if mime not in refused})
