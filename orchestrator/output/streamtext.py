"""StreamText: a stream's text as a notebook shows it: a carriage return overwrites its line, a backspace erases.

Text that moves the cursor up, as nested progress bars do, goes through a ``Screen`` until the cursor is down again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from orchestrator.output.screen import ROWS, Screen, goes_up
from orchestrator.output.textpieces import TextPieces

# Bounds on what is rendered, so that no message blocks the event loop: measured, each bound takes 20 to 40 ms. Text
# that exceeds one is kept unrendered.
_MOST_RETURNS = 150_000
_MOST_ERASURES = 20_000
_MOST_LINES = 15_000  # with a return among them
_LONGEST_LINE = 64 * 1024  # characters
_ERASURES = re.compile(r"\x08+|[^\x08]+")


class StreamText:
    """Text that grows at its end: ``size`` characters in few pieces."""

    def __init__(self) -> None:
        self._done = TextPieces()
        self._line = TextPieces()
        self._screen: Screen | None = None  # the last lines, in place of ``_line``, while the cursor is above them
        self._column: int | None = None  # where the next character goes; None: at the line's end

    @property
    def size(self) -> int:
        return self._done.size + self._line.size + (self._screen.size if self._screen is not None else 0)

    def add(self, text: str) -> None:
        """Append ``text``, and apply its carriage returns and backspaces to the last line."""
        if self._screen is not None or goes_up(text):
            self._render(text)
            return
        if "\r" in text:
            text = text.replace("\r\n", "\n")
        returns = text.count("\r") if "\r" in text else 0  # counting takes ten times as long as the check
        erasures = text.count("\b") if "\b" in text else 0
        plain = not returns and not erasures and self._column is None
        if plain or returns > _MOST_RETURNS or erasures > _MOST_ERASURES or text.count("\n") > _MOST_LINES:
            self._append(text)
            return
        first, *others = text.split("\n")
        self._overwrite(first)
        if others:
            *middle, last = others
            self._append("\n".join(["", *map(_shown, middle), ""]))
            self._overwrite(last)

    def pieces(self) -> Iterator[str]:
        """Yield the text in pieces of bounded length, and empty it."""
        self._leave_screen()
        yield from self._done.drain()
        yield from self._line.drain()

    def so_far(self) -> str:
        """Return the text as it is now."""
        return "".join((*self._done, *self._line, "" if self._screen is None else self._screen.text()))

    def _render(self, text: str) -> None:
        """Write text on the screen; what is too large for it is appended as it is."""
        if self._screen is None:
            lines = self._done.take_lines(ROWS - 1, _LONGEST_LINE)
            self._screen = Screen([*lines, "".join(self._line.drain())], self._column)
        takes = self._screen.takes(text)
        if takes:
            self._done.add(self._screen.write(text))
        if not takes or self._screen.is_at_end:
            self._leave_screen()
        if not takes:
            self._append(text)

    def _leave_screen(self) -> None:
        screen, self._screen = self._screen, None
        if screen is not None:
            self._append(screen.text())
            self._column = screen.column if screen.is_at_end else None

    def _append(self, text: str) -> None:
        self._column = None
        end = text.rfind("\n") + 1
        if end:
            for piece in self._line.drain():
                self._done.add(piece)
            self._done.add(text[:end])
        self._line.add(text[end:])

    def _overwrite(self, text: str) -> None:
        """Write text without line feeds over the last line, from the cursor on."""
        if not text or self._line.size > _LONGEST_LINE:
            self._append(text) if text else None
            return
        first, returned, rest = text.partition("\r")
        line, column = _write("".join(self._line.drain()), self._column, first)
        if returned:
            line, column = _overlay(line, rest)
        self._line.add(line)
        self._column = None if column == len(line) else column


def _write(line: str, column: int | None, text: str) -> tuple[str, int]:
    """Write ``text`` from ``column`` on. Return the line, and the column after the text."""
    start = len(line) if column is None else column
    erased = len(text) - len(text.lstrip("\b"))
    if erased and start == len(line):
        line = line[: max(0, start - erased)]
        start = len(line)
    text = _erase(text)
    return line[:start] + text + line[start + len(text) :], start + len(text)


def _overlay(line: str, text: str) -> tuple[str, int]:
    """Write each part of ``text`` over the line from its start. Return the line, and the column after the last part."""
    parts = text.split("\r")
    if "\b" in text:
        parts = list(map(_erase, parts))
    shown = last = parts.pop()
    size = longest = len(last)
    for earlier in (*reversed(parts), line):  # an earlier part shows only where it is longer than all later ones
        if len(earlier) > longest:
            longest = len(earlier)
            shown += earlier[len(shown) :]
    return shown, size


def _shown(line: str) -> str:
    """Return a whole line as it is shown."""
    first, returned, rest = line.partition("\r")
    return _overlay(_erase(first), rest)[0] if returned else _erase(first)


def _erase(text: str) -> str:
    """Apply each backspace: it removes the character before it."""
    if "\b" not in text:
        return text
    kept: list[str] = []
    for run in _ERASURES.findall(text):
        if run[0] != "\b":
            kept.append(run)
            continue
        erased = len(run)
        while erased and kept:
            last = kept.pop()
            if len(last) > erased:
                kept.append(last[:-erased])
            erased = max(0, erased - len(last))
    return "".join(kept)
