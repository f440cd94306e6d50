"""The audit log: who had what run in which kernel, and how it ended. See ``auditchain`` for the file.

Written by a thread of its own: neither a slow disk nor a full one holds up the event loop, or ends anything. What could
not be written is counted, and said in the next entry that can.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.store.auditchain import append

_log = logging.getLogger(__name__)
_LONGEST = 500  # characters of any text but code: what comes from a sandbox must not fill the disk
_WAITING = 10_000  # entries that may wait for the disk; beyond that they are dropped, and counted
_AT_ONCE = 500  # entries that are written, and forced to the disk, together
_CLOSE = 5.0  # seconds that closing waits for the disk


def brief(value: Any) -> Any:
    """Return a text's first 500 characters; anything else as it is."""
    return value[:_LONGEST] if isinstance(value, str) else value


class AuditLog:
    """Appends entries to one file, which processes may share.

    Args:
        path: the file; None: nothing is kept.
        fsync: whether entries are forced to the disk, those that have come together at once.
        rotate_at: bytes from which on the file is set aside, and a new one begun.
    """

    def __init__(self, path: Path | None, *, fsync: bool = False, rotate_at: int = 100 * 1024 * 1024) -> None:
        self._path = path
        self._fsync = fsync
        self._rotate_at = rotate_at
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self._counting = threading.Lock()
        self._thread: threading.Thread | None = None

    def write(self, event: str, **details: Any) -> None:
        """Add an entry. Never waits and never fails.

        Args:
            event: what happened, such as "kernel.started".
            details: JSON values; text is cut at 500 characters, but for ``code``.
        """
        if self._path is None:
            return
        entry: dict[str, Any] = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        for key, value in details.items():
            entry[key] = value if key == "code" else brief(value)
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
        failed, last = False, False
        while not last:
            entries, last = self._next()
            try:
                self._append(path, entries)
                failed = False
            except OSError as error:
                if not failed:  # once for each time that the disk goes away
                    _log.error("the audit log %s cannot be written: %s", path, error)
                failed = True

    def _append(self, path: Path, entries: list[dict[str, Any]]) -> None:
        """Write entries together, or, where that fails, as many as can be; count the others.

        Raises:
            OSError: some could not be written.
        """
        if not entries:
            return
        dropped = self._dropped
        first = entries[0] | ({"dropped_before": dropped} if dropped else {})
        try:
            append(path, [first, *entries[1:]], fsync=self._fsync, rotate_at=self._rotate_at)
        except OSError:
            if len(entries) == 1:
                self._count(1)
                raise
            for number, entry in enumerate(entries):
                try:
                    self._append(path, [entry])
                except OSError:
                    self._count(len(entries) - number - 1)
                    raise
        else:
            self._count(-dropped)

    def _next(self) -> tuple[list[dict[str, Any]], bool]:
        """Wait for an entry, and take what has come by then. Returns whether those are the last."""
        entries: list[dict[str, Any]] = []
        entry = self._queue.get()
        while entry is not None and len(entries) < _AT_ONCE:
            entries.append(entry)
            try:
                entry = self._queue.get_nowait()
            except queue.Empty:
                return entries, False
        if entry is not None:
            entries.append(entry)
        return entries, entry is None

    def _count(self, entries: int) -> None:
        with self._counting:
            self._dropped += entries
