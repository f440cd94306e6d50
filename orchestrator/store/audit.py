"""The audit log: who ran what in which kernel, and how it ended. ``auditchain`` has the format of the file.

A thread of its own writes the log: a slow or a full disk neither blocks the event loop nor ends a kernel. An entry that
cannot be written is dropped and counted; the next entry has the count in ``dropped_before``.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from pathlib import Path
from typing import Any

from orchestrator.eventfeed import HostEvent
from orchestrator.store.auditchain import append

_log = logging.getLogger(__name__)
_WAITING = 10_000  # entries that may wait for the disk; more are dropped and counted
_AT_ONCE = 500  # entries that are written and synced together
_GATHER = 0.005  # seconds in which they gather: the start and the end of a short cell then share one write and sync
_CLOSE = 5.0  # seconds that ``close`` waits for the disk


class AuditLog:
    """Appends events to one file, which several processes may share.

    Args:
        path: the file; None: nothing is written.
        fsync: whether entries are synced to the disk; those that wait are synced together.
        rotate_at: bytes; a larger file is renamed, and a new one begun.
        keep: how many renamed files to keep.
    """

    def __init__(
        self, path: Path | None, *, fsync: bool = False, rotate_at: int = 100 * 1024 * 1024, keep: int = 20
    ) -> None:
        self._path = path
        self._fsync = fsync
        self._rotate_at = rotate_at
        self._keep = keep
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self._counting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def receive(self, event: HostEvent) -> None:
        """Add an event to the log. Never waits and never raises. ``EventFeed`` calls it."""
        if self._path is None:
            return
        entry = {"time": event.at.isoformat(timespec="milliseconds"), "event": event.name, **event.fields}
        if event.code is not None:
            entry["code"] = event.code
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._count(1)
            return
        if self._thread is None:
            self._closing.clear()
            self._thread = threading.Thread(target=self._work, args=(self._path,), name="cellblock-audit", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write the entries that wait, for at most 5 s. Blocks. The log can be used again afterwards."""
        if self._thread is not None:
            self._closing.set()
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
                if not failed:  # log the first of several failures
                    _log.error("the audit log %s cannot be written: %s", path, error)
                failed = True

    def _append(self, path: Path, entries: list[dict[str, Any]]) -> None:
        """Write entries together; if that fails, write as many as possible one by one, and count the others.

        Raises:
            OSError: some could not be written.
        """
        if not entries:
            return
        dropped = self._dropped
        first = entries[0] | ({"dropped_before": dropped} if dropped else {})
        try:
            lines = [first, *entries[1:]]
            append(path, lines, fsync=self._fsync, rotate_at=self._rotate_at, keep=self._keep)
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
        """Wait for an entry, and return it with those that follow soon; and whether they are the last ones."""
        entries: list[dict[str, Any]] = []
        entry = self._queue.get()
        self._closing.wait(_GATHER)
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
