"""Removes from a sandbox's terminal output what would reach beyond the screen. Pure.

Programs draw with control sequences, so an interactive terminal has to pass them on. Left out are the strings that a
terminal may act on beside drawing: OSC (title, clipboard, links, files), DCS, APC, PM and SOS.
"""

from __future__ import annotations

import re

_STRINGS = re.compile(rb"\x1b[\]PX^_].*?(?:\x07|\x1b\\|\x9c)", re.DOTALL)
_BEGINNING = re.compile(rb"\x1b(?:[\]PX^_].*)?\Z", re.DOTALL)
_LONGEST = 64 * 1024  # bytes of an unfinished string; a longer one is dropped


class TerminalFilter:
    """Filters one stream of bytes."""

    def __init__(self) -> None:
        self._held = b""  # the beginning of a string that has not ended yet
        self._skips = False  # whether a string that was too long has not ended yet

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown of the next bytes. An unfinished string waits for its end."""
        data = self._held + data
        self._held = b""
        if self._skips:
            end = re.search(rb"\x07|\x1b\\|\x9c", data)
            if end is None:
                return b""
            data, self._skips = data[end.end() :], False
        data = _STRINGS.sub(b"", data)
        beginning = _BEGINNING.search(data)
        if beginning is not None:
            data, self._held = data[: beginning.start()], beginning[0]
            if len(self._held) > _LONGEST:
                self._held, self._skips = b"", True
        return data
