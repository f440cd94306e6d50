"""Retention: deletes sessions that are too old, the oldest ones beyond a total size, and files that belong to none."""

from __future__ import annotations

import asyncio
import logging
import time

from orchestrator.errors import StoreError
from orchestrator.limits import MIB
from orchestrator.settings import Settings
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import History

_log = logging.getLogger(__name__)
_PERIOD = 3600.0  # seconds
_DAY = 86_400.0  # seconds


class Retention:
    """Keeps the store of one host within the operator's limits."""

    def __init__(self, store: History, files: CheckpointFiles, settings: Settings) -> None:
        self._store = store
        self._files = files
        self._age = settings.history_days * _DAY
        self._size = settings.history_mb * MIB

    async def run(self) -> None:
        """Sweep once an hour. Runs forever."""
        while True:
            await asyncio.sleep(_PERIOD)
            try:
                await asyncio.to_thread(self.sweep)
            except (StoreError, OSError) as error:
                _log.warning("old sessions could not be deleted: %s", error)

    def sweep(self) -> int:
        """Delete the sessions that exceed the age or the size. Blocks. Returns how many were deleted.

        Raises:
            StoreError: the history cannot be read or written.
        """
        deleted = 0
        for session_id in self._store.excess(time.time() - self._age, self._size):
            files = self._store.delete(session_id)
            if files is None:  # its agent woke it meanwhile
                continue
            deleted += 1
            for checkpoint_id in files:
                self._files.remove(checkpoint_id)
        self._store.sweep_payloads()
        self._files.sweep(self._store.known_checkpoints())
        return deleted
