"""The audit log: JSON lines, one for each thing that happened to a kernel, appended and never changed.

Written by a thread of its own: neither a slow disk nor a full one holds up the event loop, or ends anything. What could
not be written is counted, and said in the next line that can.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import queue
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_LONGEST = 500  # characters of any text: what comes from a sandbox must not fill the disk
_WAITING = 10_000  # entries that may wait for the disk; beyond that they are dropped, and counted
_CLOSE = 5.0  # seconds that closing waits for the disk


class AuditLog:
    """Appends entries to one file. Safe to share between processes: each line is one write.

    Args:
        path: the file; None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self._counting = threading.Lock()
        self._thread: threading.Thread | None = None

    def write(self, event: str, **details: Any) -> None:
        """Add an entry. Never waits and never fails.

        Args:
            event: what happened, such as "kernel.started".
            details: JSON values; text is cut at 500 characters.
        """
        if self._path is None:
            return
        entry: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        entry |= {key: value[:_LONGEST] if isinstance(value, str) else value for key, value in details.items()}
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._count(1)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, args=(self._path,), name="cellblock-audit", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write what waits, for at most 5 s. Blocks."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=_CLOSE)
            self._thread.join(_CLOSE)
            self._thread = None

    def _work(self, path: Path) -> None:
        failed = False
        while (entry := self._queue.get()) is not None:
            dropped = self._dropped
            if dropped:
                entry["dropped_before"] = dropped
            try:
                _append(path, json.dumps(entry, ensure_ascii=True, default=str).encode() + b"\n")
                self._count(-dropped)
                failed = False
            except OSError as error:
                self._count(1)
                if not failed:  # once for each time that the disk goes away
                    _log.error("the audit log %s cannot be written: %s", path, error)
                failed = True

    def _count(self, entries: int) -> None:
        with self._counting:
            self._dropped += entries


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # No link is followed: whoever can write to the folder must not choose where this goes.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        _append_whole(descriptor, line)
    finally:
        os.close(descriptor)


def _append_whole(descriptor: int, line: bytes) -> None:
    """Append all of a line or nothing of it: a disk that fills up takes a part, and that part goes again."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)  # else another process's line could stand behind the part
    size = os.fstat(descriptor).st_size
    written = os.write(descriptor, line)
    if written < len(line):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, "the disk took a part of a line")
