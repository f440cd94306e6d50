"""Whose turn it is, where several processes run the tests: most go beside each other, those marked ``alone`` do not.

Alone are those that measure time or memory, and those that look at every process of the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Wait for the machine: until nobody has it to himself, or until nobody else has it at all."""
    with open_shared("door") as door, open_shared("machine") as machine:
        fcntl.flock(door, fcntl.LOCK_EX)  # in order: whoever wants it alone would else wait for ever
        fcntl.flock(machine, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


def open_shared(name: str) -> IO[bytes]:
    """Open a file that all processes of the tests see, to be locked."""
    folder = Path(tempfile.gettempdir()) / "cellblock-tests"
    folder.mkdir(mode=0o700, exist_ok=True)
    return (folder / name).open("ab")
