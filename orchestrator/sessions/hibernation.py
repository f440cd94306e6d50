"""Hibernation: which sessions sleep and when: idle ones, some when others need kernels, and at shutdown all that can.

It never wakes a session, and before a shutdown it never takes the kernel of a session that is in use.
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
from orchestrator.kernel.interruption import GRACE
from orchestrator.limits import Deadline, KernelResourceLimits
from orchestrator.outcome import Outcome
from orchestrator.policy.policy import Policy
from orchestrator.pool.kernelpool import KernelPool
from orchestrator.sessions.checkpoint import capture, capture_between_cells
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.restored import names_of
from orchestrator.sessions.session import KernelSession

_log = logging.getLogger(__name__)
_SHORTEST_PAUSE = 0.05  # seconds between two searches for idle sessions
_SHUTDOWN_GRACE = 5.0  # seconds that a shutdown which keeps sessions gives a running cell before it is interrupted
_EVICTION = 5.0  # seconds that an eviction may take before another session is evicted too
_EVICTIONS = (Outcome.IDLE, Outcome.EVICTED)  # why a session sleeps that nobody asked to sleep
_DRAIN_PAUSE = 0.05  # seconds between two looks whether a session has come to rest
_TRY_AGAIN = 5.0  # seconds after which a state that the store refused is offered again


class Hibernation:
    """Puts the sessions of one manager to sleep.

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
        # By session: after which cell it was found unable to sleep, and until when (monotonic seconds) that holds.
        self._kept: dict[str, tuple[int, float]] = {}
        self._evicting: dict[str, tuple[float, str]] = {}  # by agent: start in monotonic seconds, and group
        self._crowded = False  # whether a session ever had to sleep because another needed its kernel
        pool.reclaim_with(self.make_room)

    async def hibernate(self, session: KernelSession, reason: str) -> bool:
        """Put a session to sleep: checkpoint it and discard its kernel.

        A state that cannot be captured keeps its kernel. Only an eviction discards it, unless the policy has
        ``sessions.incomplete = "keep"``: otherwise an agent could keep a kernel forever by making its state impossible
        to capture. The session then continues from its newest checkpoint, and its next result says so.

        Returns:
            Whether the session sleeps with its newest state. False when it is in use, when its state cannot be captured
            or written, or when the policy keeps a session whose state cannot be captured in full.
        """
        async with self._registry.locked(session.agent_id, None):
            if self._registry.sessions.get(session.agent_id) is not session or session.users or session.is_busy:
                return False
            if session.agent_id in self._registry.continuing:
                return False
            uses = session.uses
            try:
                made = await capture_between_cells(session, self._registry.files, asked_for=False)
            except (KernelDiedError, SessionEndedError):
                return False
            except StoreError as error:
                self._keep(session, f"its state cannot be written: {error.message}", _TRY_AGAIN)
                return False
            except CheckpointError as error:
                if self._policy.incomplete == "keep" or reason not in _EVICTIONS:
                    self._keep(session, f"its state cannot be captured: {error.message}")
                elif not session.users and session.uses == uses:
                    session.notify(f"the newest state of this session could not be captured: {error.message}")
                    await self._registry.give_up(session, reason)
                return False
            if not made.complete and self._policy.incomplete == "keep":
                self._keep(session, f"no checkpoint can hold {names_of(made.lost)}")
                return False
            # The agent returned meanwhile. It may also have gone again: the checkpoint may lack a file that it wrote.
            if session.users or session.is_busy or session.uses != uses:
                return False
            await self._registry.put_to_sleep(session, reason)
            return True

    async def drain(self, seconds: float) -> dict[str, str]:
        """Take no more sessions, and put those that are here to sleep as they come to rest. ``undrain`` ends it.

        Returns:
            Why each session that is still here has stayed, by its id.
        """
        self._registry.draining = True
        deadline = Deadline(seconds)
        while waiting := [one for one in self._registry.sessions.values() if one.is_awake and not self._is_kept(one)]:
            if not deadline.remaining() or not self._registry.draining:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(deadline.remaining()):
                    await asyncio.gather(*(self.hibernate(session, Outcome.HIBERNATE) for session in waiting))
                    await asyncio.sleep(_DRAIN_PAUSE)
        in_use = "it is in use" if self._registry.draining else "the drain was ended"
        return {
            session.session_id: "its state cannot be captured" if self._is_kept(session) else in_use
            for session in self._registry.sessions.values()
        }

    def undrain(self) -> None:
        """Take sessions again. Idempotent."""
        self._registry.draining = False

    async def sleep_when_idle(self) -> None:
        """Put sessions to sleep, or end them, after ``idle_timeout_seconds`` without use. Runs forever."""
        while True:
            now = time.monotonic()
            for session in list(self._registry.sessions.values()):
                if now - session.idle_since >= self._idle_limit and self._may_sleep(session):
                    self._evict(session, Outcome.IDLE)
                    await asyncio.sleep(0)
            idle_since = [
                session.idle_since
                for session in self._registry.sessions.values()
                if session.users == 0 and not self._is_kept(session) and session.agent_id not in self._evicting
            ]
            due = min(idle_since, default=time.monotonic()) + self._idle_limit - time.monotonic()
            await asyncio.sleep(min(max(due, _SHORTEST_PAUSE), self._idle_limit))

    def make_room(self, spare: KernelSession | None = None) -> Counter[str]:
        """Put the least recently used sessions to sleep, so that callers who wait get kernels.

        Called when a caller waits for a kernel, when an agent gets or leaves one, and when an eviction takes too long.
        For a group at its quota, one of its own sessions sleeps. Once sessions have had to sleep, more of them do so
        ahead of need, so that the pool can keep its warm kernels.

        Args:
            spare: a session that keeps its kernel.

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
                self._evict(min(candidates, key=lambda session: session.idle_since), Outcome.EVICTED)
        return self._coming()

    def give_way(self, group: str) -> None:
        """Put the least recently used idle session of a group to sleep: the group has all places of the cluster."""
        idle = [session for session in self._candidates(None) if session.lease_request.group == group]
        if self._policy.hibernate and idle and not self._coming()[group]:
            self._evict(min(idle, key=lambda session: session.idle_since), Outcome.EVICTED)

    async def close(self, *, keep: bool) -> None:
        """Put the sessions that have a checkpoint to sleep, or with ``keep`` all sessions, and end the others.

        A session that must be kept and whose state cannot be written is abandoned to the next start with its kernel.
        The pool ends the kernels of ended sessions.
        """
        self._registry.closed = True
        self._registry.backoff.close()
        sessions = list(self._registry.sessions.values())
        closed = await asyncio.gather(
            *(self._close_one(session, keep=keep) for session in sessions), return_exceptions=True
        )
        for failure in filter(None, closed):  # the shutdown continues with the other sessions
            _log.error("a session could not be closed; the next start closes it", exc_info=failure)

    def _wanted_of(self) -> list[str | None]:
        """Return, for each kernel that has to be given up, the group that must give it up; None for any group."""
        coming, wanted = self._coming(), list[str | None]()
        for group, short in self._pool.quota_shortages().items():
            own = min(short, coming[group])
            coming[group] -= own
            wanted += [group] * (short - own)
        return wanted + [None] * (self._pool.shortage(with_warm=self._crowded) - coming.total())

    def _coming(self) -> Counter[str]:
        """Return how many sessions are being put to sleep, by group."""
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
            and session.agent_id not in self._registry.continuing
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
                    self.make_room()  # another session may be able to sleep
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
                    _log.warning(
                        "agent %s's kernel is left running for the next start to adopt: %s", session.agent_id, error
                    )
                    self._registry.abandon(session)
                    return
                _log.warning("the newest state of agent %s's session is lost: %s", session.agent_id, error)
        if await self._registry.has_checkpoint(session.session_id):
            await self._registry.put_to_sleep(session, Outcome.SHUTDOWN)
        else:
            await self._registry.end_with_pool(session, Outcome.SHUTDOWN)

    async def _capture_last(self, session: KernelSession) -> None:
        """Capture a session's state once its running cell has ended; interrupt the cell after 5 s.

        Cells that wait for their turn are refused.

        Raises:
            CheckpointError, StoreError, KernelDiedError: see ``checkpoint.capture``.
            CheckpointStateError: the cell ignores its interrupt.
        """
        session.refuse_cells()
        for patience in (_SHUTDOWN_GRACE, GRACE):
            try:
                async with contextlib.AsyncExitStack() as held:
                    async with asyncio.timeout(patience):
                        await held.enter_async_context(session.between_cells())
                    await capture(session, self._registry.files, asked_for=False)
                    return
            except TimeoutError:
                session.interrupt()
        raise CheckpointStateError("its cell ignored its interrupt.")
