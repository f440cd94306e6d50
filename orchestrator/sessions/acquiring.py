"""Acquiring: give an agent its session with a live kernel: the session that it has, woken if it sleeps, or a new one.

A session outlives its kernels. A session that gives up its kernel leaves a checkpoint and sleeps; it wakes in a fresh
kernel when its agent acquires it: ``max_kernels`` bounds kernels, not sessions. This module never chooses which session
has to sleep.
"""

from __future__ import annotations

import asyncio
import time

from orchestrator.errors import (
    CheckpointError,
    CheckpointMissingError,
    KernelDiedError,
    KernelPoolExhaustedError,
    ManagerClosedError,
    SessionBusyError,
)
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import Deadline
from orchestrator.pool.kernelpool import KernelPool, KernelResource
from orchestrator.pool.scheduler import LeaseRequest
from orchestrator.sessions.checkpoint import load
from orchestrator.sessions.clusterquotas import ClusterQuotas
from orchestrator.sessions.elsewhere import Elsewhere
from orchestrator.sessions.hibernation import Hibernation
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.restored import Restored, is_loss
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import History, SessionRecord

_LOCK_WAIT = 60.0  # seconds that ending a session waits for another call that wakes it or puts it to sleep
_START_ANEW = "Start a new session with `await manager.end_session(agent_id)`."


class Acquiring:
    """Finds, begins, wakes and ends the sessions of one manager, by agent.

    Args:
        hibernation: makes room in the pool when a kernel is wanted.

    Attributes:
        elsewhere: finds the sessions that sleep, or that other processes own.
    """

    def __init__(
        self, registry: SessionRegistry, hibernation: Hibernation, pool: KernelPool, quotas: ClusterQuotas
    ) -> None:
        self._registry = registry
        self._hibernation = hibernation
        self._pool = pool
        self._quotas = quotas
        self.elsewhere = Elsewhere(registry)

    async def session_of(
        self,
        agent_id: str,
        timeout: float | None,
        caller: str,
        group: str | None = None,
        priority: int = 0,
        *,
        handover: bool = False,
    ) -> KernelSession:
        """Return the agent's session with a live kernel: as it is, woken, or new. One call at a time for each agent.

        Args:
            group: the group that is charged for the kernel; None: the session's group so far.
            handover: ask a live process that owns the session to hand it over.

        Raises:
            SessionBusyError: another call wakes the session, or puts it to sleep, for longer than ``timeout`` seconds.
            KernelPoolExhaustedError, KernelStartError, EngineError: there is no kernel for the session.
            CheckpointError, StoreError: the session cannot be woken; it sleeps as before.
            SessionElsewhereError: another process owns the session.
        """
        deadline = None if timeout is None else Deadline(timeout)
        async with self._registry.locked(agent_id, timeout):
            await self.elsewhere.continued(agent_id, deadline)
            self._refuse_when_closed()
            if (live := self._lease_live(agent_id, group, priority, caller)) is not None:
                return live
            await self._registry.reaped(agent_id, deadline)
            self._refuse_when_closed()
            self._refuse_when_draining()
            record = await self.elsewhere.sleeping(agent_id, deadline, handover=handover)
            if (live := self._lease_live(agent_id, group, priority, caller)) is not None:
                return live  # it was taken over with its kernel
            try:
                return await self._started(agent_id, record, deadline, caller, group, priority)
            except (CheckpointError, SessionBusyError):
                await self.elsewhere.sleeping(agent_id, deadline, handover=False)  # names the process that was quicker
                raise

    def _refuse_when_closed(self) -> None:
        if self._registry.closed:
            raise ManagerClosedError

    def _refuse_when_draining(self) -> None:
        if self._registry.draining:
            raise KernelPoolExhaustedError(
                "this host gives its sessions to others, and takes none.",
                max_kernels=0,
                waited=0.0,
                reason="draining",
                remedy="Acquire the kernel on another host; the session is as its last cell left it.",
            )

    def _lease_live(self, agent_id: str, group: str | None, priority: int, caller: str) -> KernelSession | None:
        session = self._registry.sessions.get(agent_id)
        if session is None or not session.is_awake:
            return None
        self._registry.inherited.discard(session.session_id)
        session.lease(_request(session, group, priority), caller)
        self._registry.charge(session, session.lease_request)
        return session

    async def end(self, agent_id: str, reason: str) -> bool:
        """End the agent's session, awake or asleep, and discard its kernel. Returns whether there was one.

        Raises:
            SessionBusyError: another call has been waking the session, or putting it to sleep, for a minute.
        """
        session = self._registry.sessions.get(agent_id)
        if session is None:
            async with self._registry.locked(agent_id, _LOCK_WAIT):
                session = self._registry.sessions.get(agent_id)
                if session is None:
                    return self._registry.is_open and await self._end_sleeping(agent_id, reason)
        await self._registry.end(session, reason)
        return True

    async def lease(
        self, deadline: Deadline | None, request: LeaseRequest, room_for: KernelSession | None = None
    ) -> tuple[Kernel, KernelResource]:
        """Take a live kernel from the pool, and make other sessions sleep if none is free.

        Args:
            room_for: a session that does not have to sleep for it.

        Raises:
            KernelPoolExhaustedError, KernelStartError, EngineError: there is no kernel.
        """
        while True:
            remaining = None if deadline is None else deadline.remaining()
            taking = asyncio.ensure_future(self._pool.acquire(remaining, request=request))
            await asyncio.sleep(0)  # let it take its place in the queue
            self._hibernation.make_room(spare=room_for)
            resource = await _or_cancel(taking)
            if resource.kernel is not None and resource.kernel.is_alive:
                return resource.kernel, resource
            self._pool.release(resource)  # it died between being ready and being taken

    async def _started(
        self,
        agent_id: str,
        record: SessionRecord | None,
        deadline: Deadline | None,
        caller: str,
        group: str | None,
        priority: int,
    ) -> KernelSession:
        """Return a new or a sleeping session with a kernel, once its group has a place in the cluster."""
        asked = time.monotonic()
        while True:
            session = self._registry.make(agent_id) if record is None else self._registry.recall(record)
            request = _request(session, group, priority)
            session.charge(self._quotas.place(request.group))
            try:
                await self._start(session, record, deadline, request, caller)
            except KernelPoolExhaustedError as error:
                if error.reason != "quota" or self._quotas.place(request.group) is None:
                    raise
                self._hibernation.give_way(request.group)
                waits = session.policy.pool.exhausted == "wait"
                if not (waits and await self._quotas.wait(request.group, deadline)):
                    error.waited = time.monotonic() - asked
                    raise
            else:
                return session

    async def _start(
        self,
        session: KernelSession,
        record: SessionRecord | None,
        deadline: Deadline | None,
        request: LeaseRequest,
        caller: str,
    ) -> None:
        """Give a new or a sleeping session a kernel."""
        await self._registry.backoff.wait(session.agent_id, deadline, self._pool.max_kernels)
        kernel, resource = await self.lease(deadline, request)
        end = self._registry.take_end(session.agent_id)
        files = self._registry.take_lost_files(session.agent_id)
        try:
            if record is None:
                resource.served = True  # whatever happens now, no other agent gets this kernel
                session.lease(request, caller)
                if end is None:
                    end = await self._loss_before(session.agent_id)
                await session.begin(kernel, last_end=end, lost_files=list(files))
            else:
                await self._wake(session, record, kernel, resource, end, files)
                session.lease(request, caller)
            self._registry.enter(session, resource)
            self._hibernation.make_room()
        except BaseException as error:
            if isinstance(error, KernelPoolExhaustedError):  # the group has no place: nobody has used the kernel
                resource.served = False
            if resource.served and isinstance(error, CheckpointError | KernelDiedError):  # its state cost it a kernel
                self._registry.note_death(session, kernel, 0.0)
            self._registry.remember_again(session.agent_id, end, files)
            self._pool.release(resource)
            raise

    async def _loss_before(self, agent_id: str) -> str | None:
        """Return why the agent's last session ended, if it was lost in another process."""
        reason = await self._registry.store.run(History.last_end, agent_id)
        return reason if is_loss(reason) else None

    async def _wake(
        self,
        session: KernelSession,
        record: SessionRecord,
        kernel: Kernel,
        resource: KernelResource,
        end: str | None,
        files: dict[str, float],
    ) -> None:
        stored = self._registry.files
        made = await self._registry.store.run(History.checkpoints_of, record.session_id)
        if not made:
            raise CheckpointMissingError(
                f"the session of agent {record.agent_id!r} has no checkpoint to be woken from.", remedy=_START_ANEW
            )

        async def load_newest() -> Restored:
            resource.served = True  # whatever happens now, no other agent gets this kernel
            try:
                seconds = session.policy.sessions.checkpoint_time_s
                path = stored.path(made[0].checkpoint_id)
                return await load(kernel, stored, path, record.agent_id, seconds, session.package_source)
            except CheckpointError as error:
                error.remedy = f"{error.remedy} {_START_ANEW}".strip()
                raise

        lost = [path for path, since in files.items() if since > made[0].created_at]
        await session.wake(kernel, load_newest, cells=record.cells, last_end=end, lost_files=lost)

    async def _end_sleeping(self, agent_id: str, reason: str) -> bool:
        record = await self._sleeping(agent_id)
        if record is None:
            return False
        session = self._registry.recall(record)
        if not await session.take_over(None):
            return False  # another process has just woken it
        self._registry.asleep.pop(session.session_id, None)
        await session.end(reason)
        await self._registry.drop_checkpoints(session)
        return True

    async def _sleeping(self, agent_id: str) -> SessionRecord | None:
        """Return the agent's session that sleeps and that no process owns."""
        found = await self._registry.store.run(History.sessions_of, agent_id)
        return next((record for record in found if record.state == "asleep" and record.owner is None), None)


def _request(session: KernelSession, group: str | None, priority: int) -> LeaseRequest:
    return LeaseRequest(session.lease_request.group if group is None else group, priority)


async def _or_cancel(taking: asyncio.Future[KernelResource]) -> KernelResource:
    try:
        return await taking
    except asyncio.CancelledError:
        taking.cancel()
        raise
