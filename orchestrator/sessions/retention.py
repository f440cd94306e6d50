"""Retention: deletes sessions that are too old, the oldest ones beyond a total size, and files that belong to none.

If sessions that go on exceed the total size by themselves, it deletes their oldest outputs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

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
        """Delete the sessions, and then the outputs, that exceed the age or the size. Blocks.

        Returns:
            How many sessions were deleted.

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
        swept = self._store.sweep_outputs(self._size, without_outputs)
        if swept:
            _log.info("old outputs of %d bytes were deleted: the history exceeded CELLBLOCK_HISTORY_MB", swept)
        self._store.sweep_payloads()
        self._files.sweep(self._store.known_checkpoints())
        self._store.shrink()
        return deleted


_FACTS = (
    *("status", "outcome", "msg_id", "execution_count", "duration_s", "truncated", "mime_dropped", "interrupted"),
    *("kernel_state", "runtime", "evidence", "warnings"),
)
_LONGEST_ERROR = 1000  # characters of an error's name and text


def without_outputs(result: dict[str, Any], size: int) -> dict[str, Any]:
    """Return a cell's result without its outputs: how it ended, and a mark with the number of bytes deleted.

    Args:
        result: ``ExecutionResult.as_dict()``; or its outcome alone.
    """
    said = f"[{size / 1e6:.1f} MB of outputs deleted: the history exceeded CELLBLOCK_HISTORY_MB]"
    facts = {"status": "ok" if result["outcome"] == "ok" else "error"}
    facts |= {name: result[name] for name in _FACTS if name in result}
    outputs: list[dict[str, Any]] = [{"type": "stream", "output_type": "stream", "name": "stdout", "text": said}]
    error = _shortened(result.get("error"))
    if error is not None:
        outputs.append({"type": "error", "output_type": "error", **error})
        error = {**error, "traceback_text": ""}
    shown = {"outputs": outputs, "stdout": said, "stderr": "", "result": None, "error": error}
    return {**facts, **shown, "outputs_deleted": size}


def _shortened(error: Any) -> dict[str, Any] | None:
    if not isinstance(error, dict):
        return None
    name, value = (str(error.get(key) or "")[:_LONGEST_ERROR] for key in ("ename", "evalue"))
    return {"ename": name, "evalue": value, "traceback": []}
