"""MimeFilter: removes mime types that a policy does not allow, and invalid content, from what a cell displays. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

from orchestrator.output.events import DisplayData, ExecuteResult, OutputEvent, UpdateDisplayData
from orchestrator.output.mimebundle import MOST_TYPES, is_valid, without_types
from orchestrator.output.printable import printable

_MOST = 20  # names of removed mime types that are kept
_LONGEST = 100  # characters of each
_TEXT = "text/plain"


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
        """The mime types of which something was removed, each once and printable, 20 at most."""
        return tuple(self._removed)

    def filter(self, event: OutputEvent) -> OutputEvent:
        """Return the event with the items that the policy allows and that are valid, 32 at most.

        ``text/plain`` is always allowed. Metadata under a mime type that the policy does not allow is removed too.
        """
        if not isinstance(event, DisplayData | UpdateDisplayData | ExecuteResult):
            return event
        has_text = isinstance(event.data.get(_TEXT), str)
        if has_text and len(event.data) == 1 and not event.metadata:  # most results
            return event
        data = {mime: item for mime, item in islice(event.data.items(), MOST_TYPES) if self._takes(mime, item)}
        if has_text:  # also where 32 other types stand before it
            data.setdefault(_TEXT, event.data[_TEXT])
        if len(data) < len(event.data):
            self._note(mime for mime in event.data if mime not in data)
        return replace(event, data=data, metadata=without_types(event.metadata, self._few_types()))

    def _takes(self, mime: str, item: object) -> bool:
        return self._allows(mime) and is_valid(mime, item)

    def _allows(self, mime: str) -> bool:
        return mime == _TEXT or self._passes(mime)

    def _few_types(self) -> Callable[[str], bool]:
        """Return ``_allows`` for the first 32 types that it is called with; no other one is allowed."""
        seen: dict[str, bool] = {}

        def allows(mime: str) -> bool:
            if mime not in seen and len(seen) < MOST_TYPES:
                seen[mime] = self._allows(mime)
            return seen.get(mime, False)

        return allows

    def _note(self, removed: Iterable[str]) -> None:
        for mime in islice(removed, _MOST - len(self._removed)):
            self._removed[printable(mime, _LONGEST)] = None
