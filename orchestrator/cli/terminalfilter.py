"""Removes from a sandbox's terminal output what would reach beyond the screen. Pure.

Programs draw with control sequences, so an interactive terminal has to pass them on. Left out are the strings that a
terminal may act on beside drawing: OSC (title, clipboard, links, files), DCS, APC, PM and SOS.
"""

from __future__ import annotations

import re

_BEGINNING = re.compile(rb"\x1b[\]PX^_]")
_END = re.compile(rb"\x07|\x1b\\|\x9c")


class TerminalFilter:
    """Filters one stream of bytes, in time that grows with their number alone, however they are cut."""

    def __init__(self) -> None:
        self._held = b""  # an escape character that the next bytes explain
        self._inside = False  # whether a string has begun and not ended

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown of the next bytes. Nothing of a string is shown, whether it ends or not."""
        data = self._held + data
        self._held = b"\x1b" if data.endswith(b"\x1b") else b""
        last = len(data) - len(self._held)
        shown: list[bytes] = []
        at = 0
        while at < last:
            found = (_END if self._inside else _BEGINNING).search(data, at)
            if not self._inside:
                shown.append(data[at : last if found is None else found.start()])
            if found is None:
                break
            self._inside = not self._inside
            at = found.end()
        return b"".join(shown)
