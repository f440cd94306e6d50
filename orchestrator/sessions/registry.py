"""SessionRegistry: which sessions have a kernel, and what follows when one loses its kernel.

It never finds a kernel for a session, and never chooses the session that has to give up its kernel.

A caller that finds a session, wakes it or puts it to sleep holds its agent's lock. A kernel's death and a session's end
do not wait for that lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from orchestrator.errors import EngineError, SessionBusyError, StoreError
from orchestrator.image.packages import PackageSource
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import Deadline
from orchestrator.outcome import Outcome
from orchestrator.policy.policy import Policy
from orchestrator.pool.kernelpool import KernelPool, KernelResource
from orchestrator.pool.scheduler import LeaseRequest
from orchestrator.sessions.backoff import Backoff
from orchestrator.sessions.continuing import Continuing
from orchestrator.sessions.owners import is_node
from orchestrator.sessions.session import KernelSession
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import History, SessionRecord

_REMEMBERED_ENDS = 10_000  # agents whose last session's end is remembered until they return


class SessionRegistry:
    """The sessions of one manager.

    Args:
        spawn: runs background work of the manager.
        packages: where packages for sessions come from.

    Attributes:
        sessions: the sessions that have a kernel, by agent id.
        asleep: the sessions without a kernel that a caller still holds, by session id.
        inherited: ids of a dead process's sessions that no agent of this process has acquired yet.
        continuing: for each agent whose session is being taken over from a dead process, what to wait for.
        closed: whether the manager shuts down: no session gets a kernel then.
        draining: whether sessions go to other hosts: none that sleeps gets a kernel here.
        owner: this process's name in the store.
        policy: what the cells of all sessions may do.
        backoff: how long agents wait whose kernels keep dying.
    """

    def __init__(
        self,
        pool: KernelPool,
        policy: Policy,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        packages: PackageSource | None = None,
    ) -> None:
        self.policy = policy
        self._packages = packages
        self.sessions: dict[str, KernelSession] = {}
        self.asleep: WeakValueDictionary[str, KernelSession] = WeakValueDictionary()
        self.inherited: set[str] = set()
        self.continuing: dict[str, Continuing] = {}
        self.closed = False
        self.draining = False
        self.owner = ""
        self.backoff = Backoff()
        self._pool = pool
        self._spawn = spawn
        self._store: History | None = None
        self._files: CheckpointFiles | None = None
        self._agents: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # a lock lives while it is used
        self._leases: dict[str, KernelResource] = {}
        self._reaping: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, str] = {}
        self._lost_files: dict[str, dict[str, float]] = {}

    def open(self, store: History, files: CheckpointFiles, owner: str) -> None:
        """Set the store and this process's name in it. The manager calls this when it starts.

        Sessions of an earlier start, which was undone, are forgotten: their store is closed.
        """
        self.asleep.clear()
        self.inherited.clear()
        self._store, self._files, self.owner = store, files, owner

    @property
    def is_open(self) -> bool:
        """Whether ``open`` was called."""
        return self._store is not None

    @property
    def is_of_cluster(self) -> bool:
        """Whether this process is a node of a cluster."""
        return is_node(self.owner)

    @property
    def store(self) -> History:
        """The store of the sessions."""
        assert self._store is not None
        return self._store

    @property
    def files(self) -> CheckpointFiles:
        """The files of the sessions' checkpoints."""
        assert self._files is not None
        return self._files

    @contextlib.asynccontextmanager
    async def locked(self, agent_id: str, timeout: float | None) -> AsyncIterator[None]:
        """Hold an agent's lock.

        Raises:
            SessionBusyError: another call holds it for longer than ``timeout`` seconds.
        """
        lock = self._agents.setdefault(agent_id, asyncio.Lock())
        message = f"the session of agent {agent_id!r} is still being woken, or put to sleep, for another call."
        async with _in_time(agent_id, timeout, message):
            await lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def is_locked(self, agent_id: str) -> bool:
        """Return whether a call holds the agent's lock."""
        lock = self._agents.get(agent_id)
        return lock is not None and lock.locked()

    def recall(self, record: SessionRecord) -> KernelSession:
        """Return the session of a row: the object that callers hold, if there is one, else a new object."""
        held = self.asleep.get(record.session_id)
        if held is not None:
            return held
        return KernelSession.of_record(
            record, store=self.store, owner=self.owner, policy=self.policy, package_source=self._packages
        )

    def make(self, agent_id: str) -> KernelSession:
        """Return a new session, which has no kernel yet."""
        return KernelSession.new(
            agent_id, store=self.store, owner=self.owner, policy=self.policy, package_source=self._packages
        )

    def enter(self, session: KernelSession, resource: KernelResource) -> None:
        """Add a session that has a kernel, and watch that kernel for its end.

        Raises:
            KernelDiedError: the kernel is gone already.
        """
        kernel = session.live_kernel()
        resource.served = True
        self.asleep.pop(session.session_id, None)
        self.sessions[session.agent_id] = session
        self._leases[kernel.kernel_id] = resource
        kernel.on_lost(partial(self._lost, session, kernel, time.monotonic()))

    def charge(self, session: KernelSession, request: LeaseRequest) -> None:
        """Charge a session's kernel to the request's group from now on."""
        if (resource := self._leases.get(session.kernel_id)) is not None:
            self._pool.charge(resource, request.group)

    def take_lease(self, kernel_id: str) -> KernelResource | None:
        """Remove and return a kernel's place in the pool; the caller frees it."""
        return self._leases.pop(kernel_id, None)

    def take_end(self, agent_id: str) -> str | None:
        """Return why the agent's last kernel ended, once; None when it is not known."""
        return self._ends.pop(agent_id, None)

    def take_lost_files(self, agent_id: str) -> dict[str, float]:
        """Return, once, which files the agent's last kernel had got by ``put_file``, and when (seconds since epoch)."""
        return self._lost_files.pop(agent_id, {})

    def remember_end(self, agent_id: str, reason: str) -> None:
        """Keep for ``take_end`` why the agent's last kernel ended."""
        self._ends.pop(agent_id, None)
        self._ends[agent_id] = reason
        while len(self._ends) > _REMEMBERED_ENDS:
            oldest = next(iter(self._ends))
            del self._ends[oldest]
            self._lost_files.pop(oldest, None)

    def remember_again(self, agent_id: str, reason: str | None, files: dict[str, float]) -> None:
        """Keep what ``take_end`` and ``take_lost_files`` returned: the agent got no kernel."""
        if reason is not None and agent_id not in self._ends:
            self.remember_end(agent_id, reason)
            self._lost_files[agent_id] = files

    async def has_checkpoint(self, session_id: str) -> bool:
        """Return whether the session has a checkpoint.

        Raises:
            StoreError: the store cannot be read.
        """
        return bool(await self.store.run(History.checkpoints_of, session_id))

    # A kernel's death

    async def reap_if_dead(self, session: KernelSession) -> None:
        """Put a session whose kernel has just died to sleep, or end it."""
        if session.kernel is not None and not session.kernel.is_alive and session.ended is None:
            await self._reap(session)

    async def reaped(self, agent_id: str, deadline: Deadline | None) -> None:
        """Wait until the agent's dead kernel, if it has one, is reaped.

        Raises:
            SessionBusyError: that takes longer than the deadline.
        """
        session = self.sessions.get(agent_id)
        timeout = None if deadline is None else deadline.remaining()
        message = f"the last kernel of agent {agent_id!r} is gone, and the engine has not yet said how."
        async with _in_time(agent_id, timeout, message):
            if session is not None:
                await self._reap(session)
            elif agent_id in self._reaping:
                await asyncio.shield(self._reaping[agent_id])

    def _lost(self, session: KernelSession, kernel: Kernel, since: float) -> None:
        """Called once a session's kernel is disconnected: by itself, or because the session has given it up."""
        if session.kernel is kernel and self.sessions.get(session.agent_id) is session and not self.closed:
            self.note_death(session, kernel, time.monotonic() - since)
        self._spawn(self._reap_lost(session, kernel))

    def note_death(self, session: KernelSession, kernel: Kernel, served_s: float) -> None:
        """Note that a kernel died that the agent had for so many seconds: its next one may have to wait."""
        wait = self.backoff.died(session.agent_id, served_s)
        if wait:
            session.note(kernel, "session.held_back", seconds=wait)

    async def _reap_lost(self, session: KernelSession, kernel: Kernel) -> None:
        if session.kernel is kernel and not self.closed:
            await self._reap(session)

    async def _reap(self, session: KernelSession) -> None:
        """Find out why a session's kernel is gone, and free its place. Concurrent callers share one task."""
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
            reason = (await kernel.exit()).reason
        except EngineError:
            reason = Outcome.ENGINE_LOST
        if reason is Outcome.ENGINE_LOST:
            self.backoff.forgive(session.agent_id)
        await session.settled()
        if self.sessions.get(session.agent_id) is not session or session.kernel is not kernel:
            return
        await self.give_up(session, reason)

    # How a session loses its kernel

    async def give_up(self, session: KernelSession, reason: str) -> None:
        """Discard a session's kernel without a new checkpoint: the session sleeps if it has an older one, else ends."""
        try:
            has_checkpoint = await self.has_checkpoint(session.session_id)
        except StoreError:  # its place in the pool must be freed all the same; waking the session reports the error
            has_checkpoint = True
        if has_checkpoint:
            await self.put_to_sleep(session, reason)
        else:
            await self.end(session, reason)

    async def put_to_sleep(self, session: KernelSession, reason: str) -> None:
        """Discard the kernel of a session that has a checkpoint. Does nothing for one that has ended meanwhile."""
        if self.sessions.get(session.agent_id) is not session:
            return
        resource = self._remove(session, reason)
        self.asleep[session.session_id] = session
        try:
            await session.sleep(reason)
        finally:
            if resource is not None:
                await self._pool.discard(resource)

    def abandon(self, session: KernelSession) -> None:
        """Let go of a session and its kernel, as the end of this process would: the next start adopts both."""
        del self.sessions[session.agent_id]
        resource = self.take_lease(session.kernel_id)
        session.abandon()
        if resource is not None:
            self._pool.abandon(resource)

    async def end(self, session: KernelSession, reason: str) -> None:
        """End a session and discard its kernel. Idempotent: the kernel may die meanwhile."""
        if session.ended is not None:
            return
        resource = self._remove(session, reason)
        try:
            await session.end(reason)
        finally:
            if resource is not None:
                await self._pool.discard(resource)
            await session.settled()
            await self.drop_checkpoints(session)

    def disown(self, session_id: str) -> None:
        """Let go of a session that another process has taken over, and end its kernel here. Idempotent.

        The store has refused what this process wrote, and refuses the rest.
        """
        self.asleep.pop(session_id, None)
        session = next((one for one in self.sessions.values() if one.session_id == session_id), None)
        if session is not None:
            resource = self._remove(session, Outcome.TAKEN_OVER)
            self.take_end(session.agent_id)  # the store knows how the session ends where it is now
            session.disown()
            if resource is not None:
                self._spawn(self._pool.discard(resource))

    def disown_all(self) -> None:
        """Do what ``disown`` does with every session: this process's node was fenced."""
        for session_id in [*self.asleep, *(session.session_id for session in self.sessions.values())]:
            self.disown(session_id)

    async def end_with_pool(self, session: KernelSession, reason: str) -> None:
        """End a session at shutdown. The pool ends its kernel when it closes."""
        self.sessions.pop(session.agent_id, None)
        await session.end(reason)
        await self.drop_checkpoints(session)

    async def drop_checkpoints(self, session: KernelSession) -> None:
        """Remove an ended session's checkpoints, but for those that a caller asked for."""
        for checkpoint_id in await session.drop_checkpoints():
            await asyncio.to_thread(self.files.remove, checkpoint_id)

    def _remove(self, session: KernelSession, reason: str) -> KernelResource | None:
        if self.sessions.get(session.agent_id) is session:
            del self.sessions[session.agent_id]
        self.remember_end(session.agent_id, reason)
        if session.files_in:
            self._lost_files[session.agent_id] = session.files_in
        resource = self.take_lease(session.kernel_id)
        if resource is not None:
            resource.is_shutting_down = True  # its place counts as coming free while the row is written
        return resource


@contextlib.asynccontextmanager
async def _in_time(agent_id: str, timeout: float | None, message: str) -> AsyncIterator[None]:
    """Bound a wait for an agent's own session, in seconds; None does not bound it.

    Raises:
        SessionBusyError: the wait took longer.
    """
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise SessionBusyError(message, agent_id=agent_id, waited=timeout or 0.0) from None
