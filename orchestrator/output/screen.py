"""Screen: the last lines of a stream while its cursor is above the last one, as nested progress bars move it. Pure."""

from __future__ import annotations

import re

ROWS = 32  # lines that a cursor can go up
_WIDEST = 2048  # characters of a line
_LONGEST = 64 * 1024  # characters that are rendered at once: measured, with the most moves they take 15 ms
_MOST_MOVES = 1500
_MOVES = re.compile(r"[\n\r\b]|\x1b\[\d{0,3}[AK]")
_UP = re.compile(r"\x1b\[\d{0,3}A")


def goes_up(text: str) -> bool:
    """Return whether a text moves the cursor up."""
    return "\x1b" in text and _UP.search(text) is not None  # a search for two characters takes thirty times as long


class Screen:
    """At most ``ROWS`` lines and a cursor.

    Args:
        lines: without line feeds; the last one may be unfinished, and the cursor is on it.
        column: of the cursor; None: at the line's end.
    """

    def __init__(self, lines: list[str], column: int | None) -> None:
        self._rows = lines
        self._row = len(lines) - 1
        self._column = len(lines[-1]) if column is None else column

    @property
    def size(self) -> int:
        """Characters on it, line feeds included."""
        return sum(map(len, self._rows)) + len(self._rows) - 1

    @property
    def is_at_end(self) -> bool:
        """Whether the cursor is on the last line, where no screen is needed."""
        return self._row == len(self._rows) - 1

    @property
    def column(self) -> int | None:
        """The column of the cursor; None: at its line's end."""
        return None if self._column == len(self._rows[self._row]) else self._column

    def takes(self, text: str) -> bool:
        """Return whether a text is short and simple enough to be rendered."""
        wide = max(map(len, self._rows)) > _WIDEST
        return not wide and len(text) <= _LONGEST and len(_MOVES.findall(text)) <= _MOST_MOVES

    def write(self, text: str) -> str:
        """Write a text as a terminal does. Return the lines that left the screen at its top."""
        gone: list[str] = []
        at = 0
        for move in _MOVES.finditer(text):
            self._put(text[at : move.start()])
            at = move.end()
            self._move(move.group())
            if len(self._rows) > ROWS:
                gone.append(self._rows.pop(0) + "\n")
                self._row -= 1
        self._put(text[at:])
        return "".join(gone)

    def text(self) -> str:
        """Return all lines."""
        return "\n".join(self._rows)

    def _put(self, text: str) -> None:
        if text:
            line = self._rows[self._row].ljust(self._column)
            self._rows[self._row] = line[: self._column] + text + line[self._column + len(text) :]
            self._column += len(text)

    def _move(self, move: str) -> None:
        match move[-1]:
            case "\n":
                self._row, self._column = self._row + 1, 0
                if self._row == len(self._rows):
                    self._rows.append("")
            case "\r":
                self._column = 0
            case "\b":
                self._column = max(0, self._column - 1)
            case "A":
                self._row = max(0, self._row - max(1, int(move[2:-1] or 1)))
            case _:
                self._erase(move[2:-1])

    def _erase(self, how: str) -> None:
        line = self._rows[self._row]
        if how in ("", "0"):
            self._rows[self._row] = line[: self._column]
        elif how in ("1", "2"):
            self._rows[self._row] = "" if how == "2" else " " * self._column + line[self._column :]
