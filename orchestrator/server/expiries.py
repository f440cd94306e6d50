"""Expiries: ends the sessions of a server whose time to live is over, or puts them to sleep."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.errors import CellblockError
from orchestrator.principal import Principal
from orchestrator.store.history import HandleRecord, History

if TYPE_CHECKING:
    from orchestrator.server.directory import Directory

_log = logging.getLogger(__name__)
_TICK = 1.0  # seconds between two looks at what expires
_AT_ONCE = 16  # sessions that are ended at once
_AGAIN = 10.0  # seconds after which a session is looked at again that expired and could not be ended


class Expiries:
    """What expires, and when. The store has it too: a server that starts reads it there."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._due: dict[str, HandleRecord] = {}

    async def load(self) -> None:
        """Read which sessions expire.

        Raises:
            StoreError: the store cannot be read.
        """
        for handle in await self._directory.history.run(History.expiring):
            self._due[handle.session_id] = handle

    def note(self, handle: HandleRecord) -> None:
        """Take note of when a session expires, if it does."""
        self.forget(handle.session_id)
        if handle.expires_at is not None:
            self._due[handle.session_id] = handle

    def forget(self, session_id: str) -> None:
        """Leave a session alone."""
        self._due.pop(session_id, None)

    async def run(self) -> None:
        """End or hibernate the sessions that expire, until cancelled."""
        ending: set[asyncio.Task[None]] = set()
        try:
            while True:
                await asyncio.sleep(_TICK)
                now = time.time()
                expired = [each for each in self._due.values() if (each.expires_at or now) <= now]
                for handle in expired[: max(0, _AT_ONCE - len(ending))]:
                    del self._due[handle.session_id]
                    task = asyncio.create_task(self._expire(handle))
                    ending.add(task)
                    task.add_done_callback(ending.discard)
                self._directory.shrink()
        finally:
            for task in ending:
                task.cancel()
            if ending:
                await asyncio.wait(ending)

    async def _expire(self, handle: HandleRecord) -> None:
        """End or hibernate a session. What fails, or is in use, is tried again."""
        try:
            done = await self._expired(handle)
        except CellblockError as error:
            _log.warning("session %s expired, and could not be ended yet: %s", handle.session_id, error)
            done = False
        if not done:
            self._due.setdefault(handle.session_id, replace(handle, expires_at=time.time() + _AGAIN))

    async def _expired(self, handle: HandleRecord) -> bool:
        """Return whether nothing is left to do. A session that sleeps is not woken: it may wait long for a kernel."""
        found = await self._directory.history.run(History.handle, None, handle.session_id)
        if found is None or (found[0].expires_at or math.inf) > time.time():
            return True
        if handle.on_expiry == "end":
            await self._directory.stop(*found, "expired")
            return True
        if found[1].state == "live":  # in this process, or in one that was killed
            itself = Principal("expiry", handle.group, (handle.policy,), token_id=handle.token_id)
            served = await self._directory.find(itself, handle.session_id)
            served.manager.interrupt(served.session)
            if not await served.manager.hibernate(served.session.agent_id) and served.session.is_awake:
                return False
        if handle.session_id not in self._due:  # else a client gave it more time meanwhile
            await self._directory.history.run(History.set_expiry, handle.session_id, None, handle.on_expiry)
            if (held := self._directory.held(handle.session_id)) is not None:
                held.handle = replace(held.handle, expires_at=None)
        return True
