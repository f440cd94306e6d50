"""SessionRegistry: which sessions have a kernel, and how one loses it: it sleeps, ends, or is left to the next start.

It never finds a kernel for a session, and never chooses the one that has to go.

Whoever finds a session, wakes it or puts it to sleep holds its agent's lock. A death and an end do not wait for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any
from weakref import WeakValueDictionary

from orchestrator.errors import EngineError, SessionBusyError, StoreError
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import Deadline
from orchestrator.policy.policy import Policy
from orchestrator.pool.kernelpool import KernelPool, KernelResource
from orchestrator.pool.scheduler import LeaseRequest
from orchestrator.sessions.session import KernelSession
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import History, SessionRecord
from orchestrator.telemetry import Telemetry

_log = logging.getLogger(__name__)
_REMEMBERED_ENDS = 10_000  # agents whose last session's end is remembered until they return


class SessionRegistry:
    """The sessions of one manager, and where they stand in its store.

    Args:
        spawn: runs background work of the manager.

    Attributes:
        sessions: those that have a kernel, by agent id.
        asleep: those without one that somebody still holds, by session id.
        inherited: ids of a dead process's sessions that no agent of this one has asked for yet.
        closed: whether the manager shuts down: no session gets a kernel any more.
        owner: this process's name in the store.
        policy, telemetry: of every session.
    """

    def __init__(
        self,
        pool: KernelPool,
        policy: Policy,
        telemetry: Telemetry,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self.policy = policy
        self.telemetry = telemetry
        self.sessions: dict[str, KernelSession] = {}
        self.asleep: WeakValueDictionary[str, KernelSession] = WeakValueDictionary()
        self.inherited: set[str] = set()
        self.closed = False
        self.owner = ""
        self._pool = pool
        self._spawn = spawn
        self._store: History | None = None
        self._files: CheckpointFiles | None = None
        self._agents: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # a lock lives while it is used
        self._leases: dict[str, KernelResource] = {}
        self._reaping: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, str] = {}

    def open(self, store: History, files: CheckpointFiles, owner: str) -> None:
        """Begin, with what outlives this process."""
        self._store, self._files, self.owner = store, files, owner

    @property
    def is_open(self) -> bool:
        return self._store is not None

    @property
    def store(self) -> History:
        assert self._store is not None
        return self._store

    @property
    def files(self) -> CheckpointFiles:
        assert self._files is not None
        return self._files

    @contextlib.asynccontextmanager
    async def locked(self, agent_id: str, timeout: float | None) -> AsyncIterator[None]:
        """Hold an agent's lock.

        Raises:
            SessionBusyError: another call has it for longer than ``timeout`` seconds.
        """
        lock = self._agents.setdefault(agent_id, asyncio.Lock())
        try:
            async with asyncio.timeout(timeout):
                await lock.acquire()
        except TimeoutError:
            raise SessionBusyError(
                f"the session of agent {agent_id!r} is still being woken, or put to sleep, for another call.",
                agent_id=agent_id,
                waited=timeout or 0.0,
            ) from None
        try:
            yield
        finally:
            lock.release()

    def is_locked(self, agent_id: str) -> bool:
        lock = self._agents.get(agent_id)
        return lock is not None and lock.locked()

    def recall(self, record: SessionRecord, kernel: Kernel) -> KernelSession:
        """Return a session as the store has it, with a kernel: the object that callers hold, where they still do."""
        session = self.asleep.pop(record.session_id, None) or KernelSession(
            record.session_id,
            kernel.kernel_id,
            record.agent_id,
            created_at=record.created_at,
            parent_id=record.parent_id,
            store=self.store,
            policy=self.policy,
            telemetry=self.telemetry,
        )
        session.forget_history()
        session.cell_count = record.cells
        session.attach(kernel)
        return session

    def enter(self, session: KernelSession, resource: KernelResource, caller: str) -> None:
        """Note that a session has a kernel, and look after that kernel's end.

        Raises:
            KernelDiedError: it has come already.
        """
        kernel = session.live_kernel()
        resource.served = True
        session.caller = caller
        self.sessions[session.agent_id] = session
        self._leases[kernel.kernel_id] = resource
        kernel.on_lost(lambda: self._spawn(self._reap_lost(session, kernel)))

    def charge(self, session: KernelSession, request: LeaseRequest) -> None:
        """Count a session's kernel for another group from now on."""
        session.lease_request = request
        if (resource := self._leases.get(session.kernel_id)) is not None:
            self._pool.charge(resource, request.group)

    def take_lease(self, session: KernelSession) -> KernelResource | None:
        """Take a session's place in the pool from it: what becomes of that is the caller's affair."""
        return self._leases.pop(session.kernel_id, None)

    def take_end(self, agent_id: str) -> str | None:
        """Return what became of the agent's last kernel, once."""
        return self._ends.pop(agent_id, None)

    def remember_end(self, agent_id: str, reason: str) -> None:
        """Have ``take_end`` say what became of the agent's last kernel."""
        self._ends.pop(agent_id, None)
        self._ends[agent_id] = reason
        while len(self._ends) > _REMEMBERED_ENDS:
            del self._ends[next(iter(self._ends))]

    async def has_checkpoint(self, session_id: str) -> bool:
        return bool(await self.store.run(History.checkpoints_of, session_id))

    # A kernel's death

    async def reap_if_dead(self, session: KernelSession) -> None:
        """Find out what becomes of a session whose kernel has just died."""
        if session.kernel is not None and not session.kernel.is_alive and session.ended is None:
            await self._reap(session)

    async def reaped(self, agent_id: str, deadline: Deadline | None) -> None:
        """Wait for the end of the agent's last kernel, if it is coming.

        Raises:
            SessionBusyError: it takes longer than the deadline.
        """
        session = self.sessions.get(agent_id)
        waited = None if deadline is None else deadline.remaining()
        try:
            async with asyncio.timeout(waited):
                if session is not None:
                    await self._reap(session)
                elif agent_id in self._reaping:
                    await asyncio.shield(self._reaping[agent_id])
        except TimeoutError:
            raise SessionBusyError(
                f"the last kernel of agent {agent_id!r} is gone, and the engine has not yet said how.",
                agent_id=agent_id,
                waited=waited or 0.0,
            ) from None

    async def _reap_lost(self, session: KernelSession, kernel: Kernel) -> None:
        if session.kernel is kernel and not self.closed:
            await self._reap(session)

    async def _reap(self, session: KernelSession) -> None:
        """A session's kernel is gone: find out why, and free its place in the pool. Once, whoever asks for it."""
        agent_id = session.agent_id
        if agent_id not in self._reaping:
            self._reaping[agent_id] = asyncio.create_task(self._reap_once(session))
            self._reaping[agent_id].add_done_callback(lambda _: self._reaping.pop(agent_id, None))
        await asyncio.shield(self._reaping[agent_id])

    async def _reap_once(self, session: KernelSession) -> None:
        kernel = session.kernel
        if self.sessions.get(session.agent_id) is not session or kernel is None:
            return
        try:
            reason: str = (await kernel.exit()).reason
        except EngineError:
            reason = "engine_lost"
        await session.settled()
        if self.sessions.get(session.agent_id) is not session or session.kernel is not kernel:
            return
        await self.give_up(session, reason)

    # How a session loses its kernel

    async def give_up(self, session: KernelSession, reason: str) -> None:
        """Take a session's kernel away as it is: it goes on from its newest checkpoint, if there is one."""
        try:
            goes_on = await self.has_checkpoint(session.session_id)
        except StoreError:  # its place must be free all the same; waking it tells
            goes_on = True
        if goes_on:
            await self.fall_asleep(session, reason)
        else:
            await self.end(session, reason)

    async def fall_asleep(self, session: KernelSession, reason: str) -> None:
        """Take a session's kernel away, its state being in a checkpoint."""
        if self.sessions.get(session.agent_id) is not session:  # somebody has ended it meanwhile
            return
        del self.sessions[session.agent_id]
        resource = self.take_lease(session)
        if session.kernel is not None:
            session.note(session.kernel, "session.asleep", reason=reason, cells=session.cell_count)
        session.previous_end = reason
        session.detach()
        session.forget_history()
        self.asleep[session.session_id] = session
        self.remember_end(session.agent_id, reason)
        self.telemetry.kernel_ended(reason)
        try:
            with _logged():
                await self.store.run(History.session_sleeps, session.session_id)
        finally:
            if resource is not None:
                await self._pool.discard(resource)

    def abandon(self, session: KernelSession) -> None:
        """Let go of a session and its kernel as they are, as the end of this process would: the next start goes on."""
        del self.sessions[session.agent_id]
        if session.kernel is not None:
            session.note(session.kernel, "session.left", cells=session.cell_count)
        resource = self.take_lease(session)
        session.detach()
        if resource is not None:
            self._pool.abandon(resource)

    async def end(self, session: KernelSession, reason: str) -> None:
        """End a session, and its place in the pool. Whoever holds it finds out. Once: its kernel may die meanwhile."""
        if session.ended is not None:
            return
        if self.sessions.get(session.agent_id) is session:
            del self.sessions[session.agent_id]
        session.ended = reason
        self.remember_end(session.agent_id, reason)
        self.telemetry.kernel_ended(reason)
        if session.kernel is not None:
            session.note(session.kernel, "session.ended", reason=reason, cells=session.cell_count)
        resource = self.take_lease(session)
        try:
            if resource is not None:
                await self._pool.discard(resource)
            await session.settled()
        finally:
            await self.forget(session.session_id, reason)

    async def forget(self, session_id: str, reason: str) -> None:
        """Note a session's end in the store; the checkpoints that nobody asked for go with it."""
        with _logged():
            await self.store.run(History.session_ends, session_id, reason)
            for checkpoint_id in await self.store.run(History.drop_checkpoints, session_id):
                await asyncio.to_thread(self.files.remove, checkpoint_id)


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Log that a session's end cannot be noted: it has come all the same, and is noted with the next thing that can."""
    try:
        yield
    except StoreError as error:
        _log.warning("what became of a session is not in the history yet: %s", error)
