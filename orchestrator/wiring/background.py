"""Background: the tasks that a manager runs beside its callers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

_log = logging.getLogger(__name__)


class Background:
    """Holds tasks until they end, and logs the failure of each."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run ``work`` in a task, whose failure is logged."""
        self.add(asyncio.get_running_loop().create_task(work)).add_done_callback(_report)

    def add(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        """Hold a task, whose failure the caller handles. Return it."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def cancel(self) -> None:
        """Cancel all tasks and wait for their end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a background task of the manager failed", exc_info=error)
