"""SQLite's file gets smaller when rows are deleted: free pages go back to the disk, a few at a time.

``auto_vacuum=INCREMENTAL`` is a property of the file, set before its first table. A file without it keeps its free
pages, and uses them for new rows, until VACUUM writes the whole file again, during which nobody else can write.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator

_BATCH = 16  # pages of 4 KiB that one transaction gives back: 0.4 ms at the median
_LONGEST = 30.0  # seconds; the next call goes on
_INCREMENTAL = 2  # in the file's header
_NORMAL = 1  # of ``synchronous``: the disk is waited for when the log is written back, not at each commit
_SMALL = 64 * 1024 * 1024  # bytes of a file that VACUUM writes in less than a second


def use_incremental_vacuum(connection: sqlite3.Connection) -> None:
    """Let a database that has no table yet shrink later. No effect on another one.

    Raises:
        sqlite3.OperationalError: another process is making the database.
    """
    if _pragma(connection, "page_count") == 0:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")


def make_shrinkable(connection: sqlite3.Connection) -> None:
    """Write a small file of an earlier version again, so that it can shrink. If another process writes, do nothing."""
    if _pragma(connection, "auto_vacuum") == _INCREMENTAL:
        return
    if _pragma(connection, "page_count") * _pragma(connection, "page_size") > _SMALL:
        return
    with _set(connection, "busy_timeout", 0), contextlib.suppress(sqlite3.OperationalError):
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("VACUUM")


def shrink(connection: sqlite3.Connection) -> int:
    """Give free pages back, with pauses in which others write, and write the log back. Blocks for at most 30 s.

    Returns:
        How many bytes.

    Raises:
        sqlite3.Error: the database cannot be read or written.
    """
    free, freed, end = _pragma(connection, "freelist_count"), 0, time.monotonic() + _LONGEST
    with _set(connection, "synchronous", _NORMAL):
        while free and time.monotonic() < end:
            began = time.monotonic()
            connection.executescript(f"PRAGMA incremental_vacuum({_BATCH})")  # ``execute`` would give back one page
            left = _pragma(connection, "freelist_count")
            if left >= free:  # it cannot shrink, or others delete as fast
                break
            freed, free = freed + free - left, left
            time.sleep(time.monotonic() - began)
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # waits for nobody; the next writer truncates the log
    return freed * _pragma(connection, "page_size")


@contextlib.contextmanager
def _set(connection: sqlite3.Connection, name: str, value: int) -> Iterator[None]:
    """Change a setting of the connection for the block."""
    before = _pragma(connection, name)
    connection.execute(f"PRAGMA {name}={value}")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA {name}={before}")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)
