"""Which files of the working folder a cell or a command has made, changed or removed.

Compares two looks at the folder. A look is bounded: the folders near the top come first, and when its time is over, the
deeper ones are left out of the comparison. The first thousand entries are always looked at, however busy the host is.
"""

import os
from collections import deque
from collections.abc import Iterator
from time import monotonic
from typing import Any

from cellblock_kernel.originals import BUILTINS

__builtins__ = BUILTINS

TOP = b"/work"
MOST_TIME = 0.01  # seconds of one look: about 6,000 files under runc
LEAST = 1000  # entries that are looked at in any case
OFTEN = 64  # entries between two looks at the clock
MOST_NAMED = 100  # files in one report
SKIPPED = frozenset((b"__pycache__", b".ipynb_checkpoints"))

Facts = tuple[int, int, int]  # time of change in ns, size, number of the inode
Look = dict[bytes, dict[bytes, Facts | None]]  # by folder, what is in it; None: a folder


def look() -> Look:
    """Return what is in the working folder now."""
    end = monotonic() + MOST_TIME
    found: Look = {}
    folders = deque([TOP])
    seen = 0
    while folders and (seen < LEAST or monotonic() < end):
        folder = folders.popleft()
        seen += 1
        names: dict[bytes, Facts | None] = {}
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    seen += 1
                    if seen > LEAST and seen % OFTEN == 0 and monotonic() > end:
                        return found
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name not in SKIPPED:
                            names[entry.name] = None
                            folders.append(entry.path)
                    else:
                        about = entry.stat(follow_symlinks=False)
                        names[entry.name] = (about.st_mtime_ns, about.st_size, about.st_ino)
        except OSError:  # removed meanwhile, or closed to this user
            continue
        found[folder] = names
    return found


def changes(before: Look, after: Look) -> Iterator[tuple[str, bytes, int]]:
    """Yield each file that differs: "made", "changed" or "removed", its path below the working folder, and its size."""
    for folder, names in after.items():
        known = before.get(folder)
        if known is None and not _is_new(folder, before):
            continue
        for name, facts in names.items():
            earlier = (known or {}).get(name)
            if facts is not None and facts != earlier:
                yield ("made" if earlier is None else "changed"), _path(folder, name), facts[1]
    for folder, names in before.items():
        left = after.get(folder)
        if left is None and not _is_new(folder, after):
            continue
        for name, facts in names.items():
            if facts is not None and (left or {}).get(name) is None:
                yield "removed", _path(folder, name), 0


def _is_new(folder: bytes, other: Look) -> bool:
    """Return whether a folder is not there in another look: the folder above it is, or is not there either."""
    while folder != TOP:
        folder, _, name = folder.rpartition(b"/")
        if folder in other:
            return name not in other[folder]
    return False


def _path(folder: bytes, name: bytes) -> bytes:
    return os.path.join(folder, name)[len(TOP) + 1 :]


def report(before: Look, after: Look) -> dict[str, Any]:
    """Return the changes for the host: at most 100, and how many more. In a path, each byte is one character."""
    found = list(changes(before, after)) if before != after else []
    named = [[change, path.decode("latin-1"), size] for change, path, size in sorted(found, key=lambda row: row[1])]
    return {"files": named[:MOST_NAMED], "more": max(0, len(named) - MOST_NAMED)}


class ChangedFiles:
    """The looks of one kernel. A look at the end of one cell or command serves as the first of the next.

    A cell's looks are in the main thread, a command's in the control thread.
    """

    def __init__(self) -> None:
        self._last: Look | None = None

    def begin(self) -> Look:
        """Return the look before a cell or command."""
        before, self._last = self._last, None
        return look() if before is None else before

    def end(self, before: Look) -> dict[str, Any]:
        """Return what differs now from ``before``."""
        after = look()
        self._last = after
        return report(before, after)

    def forget(self) -> None:
        """Take a new look before the next cell: the host, or something in the background, has changed files."""
        self._last = None
