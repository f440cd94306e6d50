"""Hibernation: which sessions sleep, and when: idle ones, some for want of a place, and at shutdown all that can.

It never wakes one, and never takes a kernel from a session that somebody uses, or whose cell runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from orchestrator.errors import (
    CellblockError,
    CheckpointError,
    CheckpointStateError,
    KernelDiedError,
    SessionEndedError,
    StoreError,
)
from orchestrator.execution import INTERRUPT_GRACE
from orchestrator.limits import KernelResourceLimits
from orchestrator.policy.policy import Policy
from orchestrator.pool.kernelpool import KernelPool
from orchestrator.sessions.checkpoint import capture, capture_between_cells
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.restored import names_of
from orchestrator.sessions.session import KernelSession

_log = logging.getLogger(__name__)
_LEAST_SWEEP = 0.05  # seconds between two looks for idle sessions
_SHUTDOWN_GRACE = 5.0  # seconds that a shutdown which keeps sessions gives a running cell before it is interrupted
_EVICTION = 5.0  # seconds in which a session should have fallen asleep; then another one's place is looked for too
_TRY_AGAIN = 5.0  # seconds after which a state that the store would not take is offered again


class Hibernation:
    """Lets the sessions of one manager sleep.

    Args:
        spawn: runs background work of the manager.
    """

    def __init__(
        self,
        registry: SessionRegistry,
        pool: KernelPool,
        limits: KernelResourceLimits,
        policy: Policy,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._idle_limit = limits.idle_timeout_seconds
        self._policy = policy.sessions
        self._spawn = spawn
        # By session: the cell after which it was found to be no candidate for sleep, and until when.
        self._kept: dict[str, tuple[int, float]] = {}
        self._evicting: dict[str, tuple[float, str]] = {}  # agents: when in monotonic seconds it began, and their group
        self._crowded = False  # whether a session had to sleep for want of a place
        pool.reclaim_with(self.make_room)

    async def hibernate(self, session: KernelSession, reason: str) -> bool:
        """Let a session sleep: checkpoint it, and discard its kernel.

        Returns:
            Whether it sleeps. Not when it is in use, or the policy keeps what no checkpoint can hold.
        """
        async with self._registry.locked(session.agent_id, None):
            if self._registry.sessions.get(session.agent_id) is not session or session.users or session.is_busy:
                return False
            try:
                made = await capture_between_cells(session, self._registry.files, asked_for=False)
            except (KernelDiedError, SessionEndedError):
                return False
            except StoreError as error:
                self._keep(session, f"its state cannot be written: {error.message}", _TRY_AGAIN)
                return False
            except CheckpointError as error:
                if self._policy.incomplete == "keep":
                    self._keep(session, f"its state cannot be captured: {error.message}")
                    return False
                if session.users:
                    return False
                # What an agent does to its state must not win it a kernel for ever.
                await self._registry.give_up(session, reason)
                return True
            if not made.complete and self._policy.incomplete == "keep":
                self._keep(session, f"no checkpoint can hold {names_of(made.lost)}")
                return False
            if session.users or session.is_busy:  # somebody came meanwhile
                return False
            await self._registry.put_to_sleep(session, reason)
            return True

    async def sleep_when_idle(self) -> None:
        """Let sessions sleep, or end, that nobody has used for the time that the limits say. Runs for ever."""
        while True:
            now = time.monotonic()
            for session in list(self._registry.sessions.values()):
                if now - session.idle_since >= self._idle_limit and self._may_sleep(session):
                    self._evict(session, "idle")
                    await asyncio.sleep(0)
            idle_since = [
                session.idle_since
                for session in self._registry.sessions.values()
                if session.users == 0 and not self._is_kept(session) and session.agent_id not in self._evicting
            ]
            due = min(idle_since, default=time.monotonic()) + self._idle_limit - time.monotonic()
            await asyncio.sleep(min(max(due, _LEAST_SWEEP), self._idle_limit))

    def make_room(self, spare: KernelSession | None = None) -> Counter[str]:
        """Let the least recently used sessions sleep, as many as kernels are wanted beyond what is coming.

        Called when somebody waits for a kernel, when one got or left his, and when an eviction took too long. Where a
        group is at its quota, one of its own sleeps. Where there are more sessions than kernels, also ahead of need, so
        that those that the pool keeps warm can be.

        Args:
            spare: one that keeps its kernel.

        Returns:
            How many kernels are being given up, by group.
        """
        if not self._policy.hibernate or self._registry.closed or not self._registry.is_open:
            return Counter()
        for group in self._wanted_of():
            candidates = [
                session for session in self._candidates(spare) if group in (None, session.lease_request.group)
            ]
            if candidates:
                self._crowded = True
                self._evict(min(candidates, key=lambda session: session.idle_since), "evicted")
        return self._coming()

    async def close(self, *, keep: bool) -> None:
        """End every session, but let those sleep that have a checkpoint already, or all with ``keep``.

        One that is to be kept, and whose state the store does not take, is left to the next start with its kernel. The
        other kernels are the pool's to end.
        """
        self._registry.closed = True
        sessions = list(self._registry.sessions.values())
        closed = await asyncio.gather(
            *(self._close_one(session, keep=keep) for session in sessions), return_exceptions=True
        )
        for failure in filter(None, closed):  # its kernel must go all the same
            _log.error("a session could not be closed; the next start does it", exc_info=failure)

    # How

    def _wanted_of(self) -> list[str | None]:
        """Of which group a kernel is wanted, for each that has to be given up; None: of any."""
        coming, wanted = self._coming(), list[str | None]()
        for group, short in self._pool.quota_shortages().items():
            own = min(short, coming[group])
            coming[group] -= own
            wanted += [group] * (short - own)
        return wanted + [None] * (self._pool.shortage(with_warm=self._crowded) - coming.total())

    def _coming(self) -> Counter[str]:
        """How many sessions are on their way to sleep, by group."""
        now = time.monotonic()
        return Counter(group for begun, group in self._evicting.values() if now - begun < _EVICTION)

    def _candidates(self, spare: KernelSession | None) -> Iterator[KernelSession]:
        for session in self._registry.sessions.values():
            if session is not spare and self._may_sleep(session) and not self._registry.is_locked(session.agent_id):
                yield session

    def _may_sleep(self, session: KernelSession) -> bool:
        return (
            session.users == 0
            and not session.is_busy
            and session.is_awake
            and session.agent_id not in self._evicting
            and not self._is_kept(session)
        )

    def _keep(self, session: KernelSession, why: str, seconds: float = math.inf) -> None:
        self._kept[session.session_id] = session.cell_count, time.monotonic() + seconds
        session.notify(f"this session keeps its kernel while it is idle: {why}")

    def _is_kept(self, session: KernelSession) -> bool:
        cell, until = self._kept.get(session.session_id, (-1, 0.0))
        return cell == session.cell_count and time.monotonic() < until

    def _evict(self, session: KernelSession, reason: str) -> None:
        self._evicting[session.agent_id] = time.monotonic(), session.lease_request.group
        asyncio.get_running_loop().call_later(_EVICTION, self.make_room)
        self._spawn(self._evict_now(session, reason))

    async def _evict_now(self, session: KernelSession, reason: str) -> None:
        try:
            if self._policy.hibernate:
                slept = await self.hibernate(session, reason)
                if not slept and self._is_unused(session):
                    self._evicting.pop(session.agent_id, None)
                    self.make_room()  # another one, perhaps
            elif self._is_unused(session):
                await self._registry.end(session, reason)
        finally:
            self._evicting.pop(session.agent_id, None)

    def _is_unused(self, session: KernelSession) -> bool:
        return self._registry.sessions.get(session.agent_id) is session and session.users == 0

    async def _close_one(self, session: KernelSession, *, keep: bool) -> None:
        keep = keep or session.session_id in self._registry.inherited
        if session.is_awake and (
            keep or (not session.is_busy and await self._registry.has_checkpoint(session.session_id))
        ):
            try:
                await self._capture_last(session)
            except CellblockError as error:
                if keep and isinstance(error, StoreError) and session.is_awake:
                    _log.warning("agent %s's kernel is left running for the next start: %s", session.agent_id, error)
                    self._registry.abandon(session)
                    return
                _log.warning("the newest state of agent %s's session is lost: %s", session.agent_id, error)
        if await self._registry.has_checkpoint(session.session_id):
            await self._registry.put_to_sleep(session, "shutdown")
        else:
            await self._registry.end_with_pool(session, "shutdown")

    async def _capture_last(self, session: KernelSession) -> None:
        """Capture a session's state once its running cell has ended, within the grace period, or was interrupted.

        Cells that wait for their turn do not get it any more.

        Raises:
            CheckpointError, StoreError, KernelDiedError: see ``checkpoint.capture``.
            CheckpointStateError: the cell does not end.
        """
        session.refuse_cells()
        for patience in (_SHUTDOWN_GRACE, INTERRUPT_GRACE):
            try:
                async with contextlib.AsyncExitStack() as held:
                    async with asyncio.timeout(patience):
                        await held.enter_async_context(session.between_cells())
                    await capture(session, self._registry.files, asked_for=False)
                    return
            except TimeoutError:
                session.interrupt()
        raise CheckpointStateError("its cell did not heed its interrupt.")
