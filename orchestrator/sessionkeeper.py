"""SessionKeeper: which agent has which session, and which sessions have a kernel.

A session outlives its kernels. One that gives its kernel up leaves a checkpoint, sleeps, and is woken in a fresh kernel
when its agent wants it: ``max_kernels`` bounds kernels, not sessions.

Invariants:
- whatever gives a session a kernel, or takes it away, holds its agent's lock;
- a session that somebody uses, or whose cell runs, keeps its kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from orchestrator.checkpoint import Checkpoint, capture, copy, load
from orchestrator.errors import (
    CellblockError,
    CheckpointError,
    CheckpointMissingError,
    CheckpointStateError,
    EngineError,
    InvalidInputError,
    KernelDiedError,
    KernelPoolExhaustedError,
    ManagerClosedError,
    SessionEndedError,
    StoreError,
)
from orchestrator.execution import INTERRUPT_GRACE
from orchestrator.inputs import LONGEST_AGENT_ID, check_agent_id
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import Deadline, KernelResourceLimits
from orchestrator.policy import Policy
from orchestrator.pool import KernelPool, KernelResource
from orchestrator.scheduler import Claim
from orchestrator.session import KernelSession, Restored
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import CheckpointRecord, History, SessionRecord
from orchestrator.telemetry import Telemetry

_log = logging.getLogger(__name__)
_REMEMBERED_ENDS = 10_000  # agents whose last session's end is remembered until they return
_LEAST_SWEEP = 0.05  # seconds between two looks for idle sessions
_SHUTDOWN_GRACE = 5.0  # seconds that a shutdown which keeps sessions gives a running cell before it is interrupted
_LONGEST_WAIT = 60.0  # seconds of a wait that nobody bounded, and that keeps something from others
_EVICTION = 5.0  # seconds in which a session should have fallen asleep; then another one's place is looked for too
_TRY_AGAIN = 5.0  # seconds after which a state that the store would not take is offered again
_ANEW = "Begin anew with `await manager.end_session(agent_id)`."
_CHECKPOINT_ID = re.compile(r"[0-9a-f]{32}")
_NAMED = 5  # lost variables that a notice names


class SessionKeeper:
    """The sessions of one manager.

    Args:
        spawn: runs background work of the manager.

    Attributes:
        sessions: those that have a kernel, by agent id.
    """

    def __init__(
        self,
        pool: KernelPool,
        limits: KernelResourceLimits,
        policy: Policy,
        telemetry: Telemetry,
        spawn: Callable[[Coroutine[Any, Any, Any]], None],
    ) -> None:
        self.sessions: dict[str, KernelSession] = {}
        self._pool = pool
        self._limits = limits
        self._policy = policy.sessions
        self._telemetry = telemetry
        self._spawn = spawn
        self._agents: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # a lock lives while it is used
        self._asleep: WeakValueDictionary[str, KernelSession] = WeakValueDictionary()  # those that somebody still holds
        self._leases: dict[str, KernelResource] = {}
        self._burials: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, str] = {}
        # By session: the cell after which it was found to be no candidate for sleep, and until when.
        self._kept: dict[str, tuple[int, float]] = {}
        self._evicting: dict[str, tuple[float, str]] = {}  # agents: when in monotonic seconds it began, and their group
        self._inherited: set[str] = set()  # sessions of a dead process that no agent of this one has asked for yet
        self._crowded = False  # whether a session had to sleep for want of a place
        self._closed = False
        self._store: History | None = None
        self._files: CheckpointFiles | None = None
        self._owner = ""
        pool.reclaim_with(self._make_room)

    def open(self, store: History, files: CheckpointFiles, owner: str) -> None:
        """Begin, with what outlives this process.

        Args:
            owner: this process's name in the store.
        """
        self._store, self._files, self._owner = store, files, owner

    async def session_of(
        self, agent_id: str, timeout: float | None, caller: str, group: str | None = None, priority: int = 0
    ) -> KernelSession:
        """Find the agent's session, wake it, or make one; one at a time for each agent.

        Args:
            group: whose kernel it is; None: as before.

        Raises:
            KernelPoolExhaustedError, KernelStartError, EngineError: there is no kernel for it.
            CheckpointError, StoreError: it cannot be woken; it is asleep as before.
        """
        deadline = None if timeout is None else Deadline(timeout)
        async with self._locked(agent_id, timeout):
            session = self.sessions.get(agent_id)
            if session is not None and session.kernel is not None and session.kernel.is_alive:
                self._inherited.discard(session.session_id)
                self._charge(session, Claim(session.claim.group if group is None else group, priority))
                return session
            await self._buried(agent_id, session, deadline)
            if self._closed:
                raise ManagerClosedError("the manager has been shut down.", remedy="Make a new one.")
            record = await self._sleeper(agent_id)
            claim = self._claim(record, group, priority)
            kernel, resource = await self._lease(deadline, claim)
            try:
                if record is not None:
                    session = await self._wake(record, kernel, resource)
                else:
                    session = await self._begin(agent_id, kernel, resource, caller)
                session.claim = claim
                self._settle_in(session, resource, caller)
            except BaseException:
                self._pool.release(resource)
                raise
            return session

    async def end(self, agent_id: str, reason: str) -> bool:
        """End the agent's session, awake or asleep, and discard its kernel. Returns whether there was one."""
        session = self.sessions.get(agent_id)
        if session is None:
            async with self._locked(agent_id, _LONGEST_WAIT):  # it may just be on its way to sleep, or awake
                session = self.sessions.get(agent_id)
                if session is None:
                    return await self._end_sleeper(agent_id, reason)
        await self._end(session, reason)
        return True

    async def _end_sleeper(self, agent_id: str, reason: str) -> bool:
        record = None if self._store is None else await self._sleeper(agent_id)
        if self._store is None or record is None:
            return False
        if not await self._store.run(History.claim, record.session_id, None, self._owner):
            return False  # another process has just woken it
        if (held := self._asleep.pop(record.session_id, None)) is not None:
            held.ended, held.asleep = reason, False
        await self._forget(record.session_id, reason)
        return True

    async def checkpoint(self, session: KernelSession, *, asked_for: bool = True) -> Checkpoint:
        """Capture the session's state once no cell runs. Raises what ``checkpoint.capture`` raises."""
        assert self._files is not None
        async with session.between_cells():
            return await capture(session, self._files, asked_for=asked_for)

    async def checkpoint_if_due(self, session: KernelSession) -> None:
        """Capture the session's state after every so many cells, as the policy says."""
        every = self._policy.checkpoint_every
        if every and session.cell_count % every == 0 and session.kernel is not None and session.kernel.is_alive:
            try:
                await self.checkpoint(session, asked_for=False)
            except CellblockError as error:  # the cell has run, whatever became of its kernel since
                session.notices.append(f"no checkpoint could be made after cell {session.cell_count}: {error.message}")

    async def restore(
        self, session: KernelSession, checkpoint: Checkpoint | str | Path, timeout: float | None
    ) -> Restored:
        """Give the session the state of a checkpoint, in a fresh kernel; until that has loaded it, nothing changes.

        Raises:
            CheckpointError, KernelDiedError: see ``checkpoint.load``.
            KernelPoolExhaustedError, KernelStartError, EngineError: there is no kernel for it.
        """
        assert self._files is not None
        path = _path_of(checkpoint, self._files)
        async with self._locked(session.agent_id, timeout), session.between_cells():
            session.live_kernel()
            kernel, resource = await self._lease(
                Deadline(_LONGEST_WAIT if timeout is None else timeout), session.claim, room_for=session
            )
            resource.served = True  # whatever comes of it, nobody else gets this kernel
            try:
                restored = await load(kernel, self._files, path, session.agent_id)
                session.live_kernel()  # it may have ended meanwhile, or its own kernel died
                await self._note_life(session.session_id, kernel)
                session.live_kernel()
                old = self._leases.pop(session.kernel_id, None)
                session.attach(kernel)
                session.restored = restored
                self._settle_in(session, resource, session.caller)
            except BaseException:
                self._pool.release(resource)
                raise
            try:  # else it would be woken from a checkpoint of the state that it has just left
                await capture(session, self._files, asked_for=False)
            except CellblockError as error:
                session.notices.append(f"the restored state could not be kept for a later kernel: {error.message}")
            finally:
                if old is not None:
                    await self._pool.discard(old)
        session.note(kernel, "session.restored", checkpoint=restored.checkpoint_id, lost=len(restored.lost))
        return restored

    async def hibernate(self, session: KernelSession, reason: str) -> bool:
        """Let a session sleep: checkpoint it, and discard its kernel.

        Returns:
            Whether it sleeps. Not when it is in use, or the policy keeps what no checkpoint can hold.
        """
        async with self._locked(session.agent_id, None):
            if self.sessions.get(session.agent_id) is not session or session.users or session.is_busy:
                return False
            try:
                made = await self.checkpoint(session, asked_for=False)
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
                await self._give_up(session, reason)
                return True
            if not made.complete and self._policy.incomplete == "keep":
                self._keep(session, f"no checkpoint can hold {_names(made)}")
                return False
            if session.users or session.is_busy:  # somebody came meanwhile
                return False
            await self._fall_asleep(session, reason)
            return True

    async def look_after(self, session: KernelSession) -> None:
        """Find out what becomes of a session whose kernel has just died."""
        if session.kernel is not None and not session.kernel.is_alive and session.ended is None:
            await self._bury(session)

    def released(self) -> None:
        """Called when an agent leaves its kernel: others may be waiting for one."""
        self._make_room()

    async def sleep_when_idle(self) -> None:
        """Let sessions sleep, or end, that nobody has used for the time that the limits say. Runs for ever."""
        limit = self._limits.idle_timeout_seconds
        while True:
            now = time.monotonic()
            for session in list(self.sessions.values()):
                idle = session.users == 0 and not session.is_busy and now - session.idle_since >= limit
                idle = idle and _lives(session)
                if idle and not self._is_kept(session) and session.agent_id not in self._evicting:
                    self._evict(session, "idle")
                    await asyncio.sleep(0)
            idle_since = [
                session.idle_since
                for session in self.sessions.values()
                if session.users == 0 and not self._is_kept(session) and session.agent_id not in self._evicting
            ]
            due = min(idle_since, default=time.monotonic()) + limit - time.monotonic()
            await asyncio.sleep(min(max(due, _LEAST_SWEEP), limit))

    async def close(self, *, keep: bool) -> None:
        """End every session, but let those sleep that have a checkpoint already, or all with ``keep``.

        The kernels that are left are the pool's to end.
        """
        self._closed = True
        sessions = list(self.sessions.values())
        closed = await asyncio.gather(
            *(self._close_one(session, keep=keep) for session in sessions), return_exceptions=True
        )
        for failure in filter(None, closed):  # its kernel must go all the same
            _log.error("a session could not be closed; the next start does it", exc_info=failure)
        self._leases.clear()

    async def fork(
        self, session: KernelSession, count: int, agent_ids: Sequence[str] | None = None
    ) -> list[KernelSession]:
        """Make sleeping sessions with this one's state, one for each agent id, or with ids that are free.

        Raises:
            InvalidInputError: an agent id is wrong, doubled, or has a session.
            CheckpointError, StoreError, KernelDiedError: see ``checkpoint.capture``.
        """
        assert self._store is not None
        assert self._files is not None
        async with session.between_cells():  # of two forks at once each finds its own ids, and its own checkpoint
            return await self._fork(session, await self._free_ids(session.agent_id, count, agent_ids))

    async def _fork(self, session: KernelSession, agent_ids: Sequence[str]) -> list[KernelSession]:
        assert self._store is not None
        assert self._files is not None
        made = await capture(session, self._files, asked_for=False)
        kernel = session.live_kernel()
        forks = [
            KernelSession(uuid.uuid4().hex, kernel.kernel_id, agent_id, parent_id=session.session_id, store=self._store)
            for agent_id in agent_ids
        ]
        noted: list[tuple[str, CheckpointRecord]] = []
        try:
            for fork in forks:
                fork.claim = session.claim
                fork.detach()
                noted.append((fork.agent_id, await copy(made, fork, self._files)))
            names = {"kernel_id": kernel.kernel_id, "runtime": kernel.runtime}
            await self._store.run(History.add_forks, session.session_id, noted, **names)
        except BaseException:
            for _, record in noted:
                await asyncio.to_thread(self._files.remove, record.checkpoint_id)
            raise
        self._asleep.update({fork.session_id: fork for fork in forks})
        return forks

    async def adopt(self, record: SessionRecord, kernel: Kernel, *, interrupted: bool) -> KernelSession:
        """Go on with a session of a process that has died, in the kernel that it had.

        Args:
            interrupted: whether one of its cells ran.
        """
        session = self._session(record, kernel)
        if interrupted:
            session.notices.append(
                f"the orchestrator ended while cell {record.cells} ran: the cell was interrupted, not run again; what "
                "it had done by then has stayed"
            )
        resource = KernelResource(kernel.kernel_id, kernel)
        resource.acquire()
        self._pool.add_kernel(resource)
        self._inherited.add(session.session_id)
        self._settle_in(session, resource, "")
        session.note(kernel, "session.adopted", cells=record.cells)
        return session

    async def hand_over(self, session: KernelSession, reason: str) -> None:
        """Take a session's kernel away; its state, as far as it can be captured, goes on in another one."""
        try:
            await self.checkpoint(session, asked_for=False)
        except CellblockError as error:
            _log.warning("the newest state of agent %s's session is lost: %s", session.agent_id, error)
        await self._give_up(session, reason)

    async def inherit(self, record: SessionRecord) -> bool:
        """Go on with a session of a dead process whose kernel is gone. Returns whether it has a checkpoint."""
        assert self._store is not None
        self._remember_end(record.agent_id, "orchestrator_lost")
        if await self._store.run(History.checkpoints_of, record.session_id):
            self._store.submit(History.session_sleeps, record.session_id)
            return True
        await self._forget(record.session_id, "orchestrator_lost")
        return False

    # How

    @contextlib.asynccontextmanager
    async def _locked(self, agent_id: str, timeout: float | None) -> AsyncIterator[None]:
        lock = self._agents.setdefault(agent_id, asyncio.Lock())
        try:
            async with asyncio.timeout(timeout):
                await lock.acquire()
        except TimeoutError:
            raise KernelPoolExhaustedError(
                f"the session of agent {agent_id!r} is still being woken, or put to sleep, for another call.",
                max_kernels=self._pool.max_kernels,
                waited=timeout or 0.0,
            ) from None
        try:
            yield
        finally:
            lock.release()

    async def _sleeper(self, agent_id: str) -> SessionRecord | None:
        """Find the agent's session that sleeps, and that no other process has."""
        assert self._store is not None
        found = await self._store.run(History.sessions_of, agent_id)
        return next((record for record in found if record.state == "asleep" and record.owner is None), None)

    def _claim(self, record: SessionRecord | None, group: str | None, priority: int) -> Claim:
        """For whom a kernel is asked; a sleeping session's group is known as long as somebody holds the session."""
        held = None if record is None else self._asleep.get(record.session_id)
        known = "" if held is None else held.claim.group
        return Claim(known if group is None else group, priority)

    def _charge(self, session: KernelSession, claim: Claim) -> None:
        session.claim = claim
        if (resource := self._leases.get(session.kernel_id)) is not None:
            self._pool.charge(resource, claim.group)

    async def _lease(
        self, deadline: Deadline | None, claim: Claim, room_for: KernelSession | None = None
    ) -> tuple[Kernel, KernelResource]:
        while True:
            remaining = None if deadline is None else deadline.remaining()
            taking = asyncio.ensure_future(self._pool.acquire(remaining, claim=claim))
            await asyncio.sleep(0)  # it takes its place in the queue
            self._make_room(spare=room_for)
            resource = await _or_cancel(taking)
            if resource.kernel is not None and resource.kernel.is_alive:
                return resource.kernel, resource
            self._pool.release(resource)  # it died between being ready and being taken

    async def _free_ids(self, agent_id: str, count: int, wanted: Sequence[str] | None) -> list[str]:
        assert self._store is not None
        numbered = (f"{agent_id[: LONGEST_AGENT_ID - 12]}~{number}" for number in itertools.count(1))
        free: list[str] = []
        for candidate in numbered if wanted is None else wanted:
            check_agent_id(candidate)
            taken = candidate in free or bool(await self._store.run(History.sessions_of, candidate))
            if taken and wanted is not None:
                raise InvalidInputError(f"agent {candidate!r} has a session already.")
            if not taken:
                free.append(candidate)
            if len(free) == count:
                break
        return free

    async def _begin(self, agent_id: str, kernel: Kernel, resource: KernelResource, caller: str) -> KernelSession:
        session = KernelSession.of(agent_id, kernel, self._store)
        session.caller = caller
        session.previous_end = self._ends.pop(agent_id, None)
        resource.served = True  # whatever comes of it, nobody else gets this kernel
        assert self._store is not None
        try:
            await self._store.run(
                History.add_session,
                session.session_id,
                agent_id,
                owner=self._owner,
                kernel_id=kernel.kernel_id,
                runtime=kernel.runtime,
            )
        except BaseException:
            self._store.submit(History.session_ends, session.session_id, "never_started")
            raise
        session.note(kernel, "session.started", previous_end=session.previous_end)
        return session

    async def _wake(self, record: SessionRecord, kernel: Kernel, resource: KernelResource) -> KernelSession:
        assert self._store is not None
        assert self._files is not None
        made = await self._store.run(History.checkpoints_of, record.session_id)
        if not made:
            raise CheckpointMissingError(
                f"the session of agent {record.agent_id!r} has no checkpoint to be woken from.", remedy=_ANEW
            )
        if not await self._store.run(History.claim, record.session_id, None, self._owner):
            raise CheckpointError(f"another process has just woken the session of agent {record.agent_id!r}.")
        resource.served = True  # whatever comes of it, nobody else gets this kernel
        try:
            restored = await load(kernel, self._files, self._files.path(made[0].checkpoint_id), record.agent_id)
            await self._note_life(record.session_id, kernel)
        except BaseException as error:
            self._store.submit(History.session_sleeps, record.session_id)
            if isinstance(error, CheckpointError):
                error.remedy = f"{error.remedy} {_ANEW}".strip()
            raise
        session = self._session(record, kernel)
        session.restored = restored
        session.previous_end = self._ends.pop(record.agent_id, None) or session.previous_end
        session.notices += _notices(restored, record.cells, session.previous_end)
        session.note(kernel, "session.woken", checkpoint=restored.checkpoint_id, lost=len(restored.lost))
        return session

    def _session(self, record: SessionRecord, kernel: Kernel) -> KernelSession:
        session = self._asleep.pop(record.session_id, None) or KernelSession(
            record.session_id,
            kernel.kernel_id,
            record.agent_id,
            created_at=record.created_at,
            parent_id=record.parent_id,
            store=self._store,
        )
        session.forget_history()
        session.cell_count = record.cells
        session.attach(kernel)
        return session

    async def _note_life(self, session_id: str, kernel: Kernel) -> None:
        assert self._store is not None
        await self._store.run(
            History.session_lives, session_id, owner=self._owner, kernel_id=kernel.kernel_id, runtime=kernel.runtime
        )

    def _settle_in(self, session: KernelSession, resource: KernelResource, caller: str) -> None:
        kernel = session.live_kernel()
        resource.served = True
        session.caller = caller
        self.sessions[session.agent_id] = session
        self._leases[kernel.kernel_id] = resource
        kernel.when_lost(lambda: self._spawn(self._bury_lost(session, kernel)))
        self._make_room()

    async def _bury_lost(self, session: KernelSession, kernel: Kernel) -> None:
        if session.kernel is kernel and not self._closed:
            await self._bury(session)

    async def _buried(self, agent_id: str, session: KernelSession | None, deadline: Deadline | None) -> None:
        """Wait for the end of the agent's last kernel, if it is coming.

        Raises:
            KernelPoolExhaustedError: it takes longer than the deadline.
        """
        waited = None if deadline is None else deadline.remaining()
        try:
            async with asyncio.timeout(waited):
                if session is not None:
                    await self._bury(session)
                elif agent_id in self._burials:
                    await asyncio.shield(self._burials[agent_id])
        except TimeoutError:
            raise KernelPoolExhaustedError(
                f"the last kernel of agent {agent_id!r} is gone, and the engine has not yet said how.",
                max_kernels=self._pool.max_kernels,
                waited=waited or 0.0,
            ) from None

    async def _bury(self, session: KernelSession) -> None:
        """A session's kernel is gone: find out why, and free its place in the pool. Once, whoever asks for it."""
        agent_id = session.agent_id
        if agent_id not in self._burials:
            self._burials[agent_id] = asyncio.create_task(self._bury_once(session))
            self._burials[agent_id].add_done_callback(lambda _: self._burials.pop(agent_id, None))
        await asyncio.shield(self._burials[agent_id])

    async def _bury_once(self, session: KernelSession) -> None:
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
        await self._give_up(session, reason)

    async def _give_up(self, session: KernelSession, reason: str) -> None:
        """Take a session's kernel away as it is: it goes on from its newest checkpoint, if there is one."""
        try:
            goes_on = await self._has_checkpoint(session)
        except StoreError:  # its place must be free all the same; waking it tells
            goes_on = True
        if goes_on:
            await self._fall_asleep(session, reason)
        else:
            await self._end(session, reason)

    async def _end(self, session: KernelSession, reason: str) -> None:
        """End a session, and its place in the pool. Whoever holds it finds out. Once: its kernel may die meanwhile."""
        if session.ended is not None:
            return
        if self.sessions.get(session.agent_id) is session:
            del self.sessions[session.agent_id]
        session.ended = reason
        self._remember_end(session.agent_id, reason)
        self._telemetry.kernel_ended(reason)
        if session.kernel is not None:
            session.note(session.kernel, "session.ended", reason=reason, cells=session.cell_count)
        resource = self._leases.pop(session.kernel_id, None)
        try:
            if resource is not None:
                await self._pool.discard(resource)
            await session.settled()
        finally:
            await self._forget(session.session_id, reason)

    async def _forget(self, session_id: str, reason: str) -> None:
        """Note a session's end; the checkpoints that nobody asked for go with it."""
        if self._store is None or self._files is None:
            return
        with _logged():
            await self._store.run(History.session_ends, session_id, reason)
            for checkpoint_id in await self._store.run(History.drop_checkpoints, session_id):
                await asyncio.to_thread(self._files.remove, checkpoint_id)

    async def _fall_asleep(self, session: KernelSession, reason: str) -> None:
        """Take a session's kernel away, its state being in a checkpoint."""
        if self.sessions.get(session.agent_id) is not session:  # somebody has ended it meanwhile
            return
        del self.sessions[session.agent_id]
        resource = self._leases.pop(session.kernel_id, None)
        if session.kernel is not None:
            session.note(session.kernel, "session.asleep", reason=reason, cells=session.cell_count)
        session.previous_end = reason
        session.detach()
        session.forget_history()
        self._asleep[session.session_id] = session
        self._remember_end(session.agent_id, reason)
        self._telemetry.kernel_ended(reason)
        assert self._store is not None
        try:
            with _logged():
                await self._store.run(History.session_sleeps, session.session_id)
        finally:
            if resource is not None:
                await self._pool.discard(resource)

    def _make_room(self, spare: KernelSession | None = None) -> Counter[str]:
        """Let the least recently used sessions sleep, as many as kernels are wanted beyond what is coming.

        Where a group is at its quota, one of its own. Where there are more sessions than kernels, also ahead of need,
        so that those that the pool keeps warm can be.

        Returns:
            How many kernels are being given up, by group.
        """
        if not self._policy.hibernate or self._closed or self._store is None:
            return Counter()
        for group in self._wanted_of():
            candidates = [session for session in self._candidates(spare) if group in (None, session.claim.group)]
            if candidates:
                self._crowded = True
                self._evict(min(candidates, key=lambda session: session.idle_since), "evicted")
        return self._coming()

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
        """The sessions that may be put to sleep."""
        for session in self.sessions.values():
            lock = self._agents.get(session.agent_id)
            if (
                session.users == 0
                and not session.is_busy
                and session is not spare
                and _lives(session)
                and session.agent_id not in self._evicting
                and not self._is_kept(session)
                and not (lock is not None and lock.locked())
            ):
                yield session

    def _evict(self, session: KernelSession, reason: str) -> None:
        self._evicting[session.agent_id] = time.monotonic(), session.claim.group
        asyncio.get_running_loop().call_later(_EVICTION, self._make_room)
        self._spawn(self._evict_now(session, reason))

    async def _evict_now(self, session: KernelSession, reason: str) -> None:
        try:
            if self._policy.hibernate:
                slept = await self.hibernate(session, reason)
                if not slept and self.sessions.get(session.agent_id) is session and session.users == 0:
                    self._evicting.pop(session.agent_id, None)
                    self._make_room()  # another one, perhaps
            elif self.sessions.get(session.agent_id) is session and session.users == 0:
                await self._end(session, reason)
        finally:
            self._evicting.pop(session.agent_id, None)

    def _keep(self, session: KernelSession, why: str, seconds: float = math.inf) -> None:
        self._kept[session.session_id] = session.cell_count, time.monotonic() + seconds
        notice = f"this session keeps its kernel while it is idle: {why}"
        if notice not in session.notices:
            session.notices.append(notice)

    def _is_kept(self, session: KernelSession) -> bool:
        cell, until = self._kept.get(session.session_id, (-1, 0.0))
        return cell == session.cell_count and time.monotonic() < until

    async def _close_one(self, session: KernelSession, *, keep: bool) -> None:
        keep = keep or session.session_id in self._inherited
        if _lives(session) and (keep or (not session.is_busy and await self._has_checkpoint(session))):
            try:
                await self._capture_last(session)
            except CellblockError as error:
                _log.warning("the newest state of agent %s's session is lost: %s", session.agent_id, error)
        if await self._has_checkpoint(session):
            await self._fall_asleep(session, "shutdown")
        else:
            await self._end_without_pool(session)

    async def _capture_last(self, session: KernelSession) -> None:
        """Capture a session's state once its running cell has ended, within the grace period, or was interrupted.

        Cells that wait for their turn do not get it any more.

        Raises:
            CheckpointError, StoreError, KernelDiedError: see ``checkpoint.capture``.
            CheckpointStateError: the cell does not end.
        """
        assert self._files is not None
        session.closing = True
        for patience in (_SHUTDOWN_GRACE, INTERRUPT_GRACE):
            try:
                async with contextlib.AsyncExitStack() as held:
                    async with asyncio.timeout(patience):
                        await held.enter_async_context(session.between_cells())
                    await capture(session, self._files, asked_for=False)
                    return
            except TimeoutError:
                session.interrupt()
        raise CheckpointStateError("its cell did not heed its interrupt.")

    async def _has_checkpoint(self, session: KernelSession) -> bool:
        return self._store is not None and bool(await self._store.run(History.checkpoints_of, session.session_id))

    async def _end_without_pool(self, session: KernelSession) -> None:
        self.sessions.pop(session.agent_id, None)
        session.ended = "shutdown"
        if session.kernel is not None:
            session.note(session.kernel, "session.ended", reason="shutdown", cells=session.cell_count)
        await self._forget(session.session_id, "shutdown")

    def _remember_end(self, agent_id: str, reason: str) -> None:
        self._ends.pop(agent_id, None)
        self._ends[agent_id] = reason
        while len(self._ends) > _REMEMBERED_ENDS:
            del self._ends[next(iter(self._ends))]


def _lives(session: KernelSession) -> bool:
    return session.kernel is not None and session.kernel.is_alive


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Log that a session's end cannot be noted: it has come all the same, and is noted with the next thing that can."""
    try:
        yield
    except StoreError as error:
        _log.warning("what became of a session is not in the history yet: %s", error)


def _notices(restored: Restored, cells: int, reason: str | None) -> list[str]:
    """What an agent has to know of its woken session, or nothing."""
    notices = []
    if cells > restored.cell:
        notices.append(
            f"this session's kernel ended ({reason or 'unknown'}), and it goes on from its checkpoint after cell "
            f"{restored.cell}: what the {cells - restored.cell} cells after that did is lost"
        )
    if restored.lost:
        notices.append(f"this session moved to a fresh kernel, and these were not restored: {_names(restored)}")
    return notices


def _names(losing: Checkpoint | Restored) -> str:
    named = ", ".join(f"{loss.name} ({loss.kind}: {loss.reason})" for loss in losing.lost[:_NAMED])
    more = len(losing.lost) - _NAMED
    return named + (f" and {more} more" if more > 0 else "")


def _path_of(checkpoint: Checkpoint | str | Path, files: CheckpointFiles) -> Path:
    if isinstance(checkpoint, Checkpoint):
        return checkpoint.path
    if isinstance(checkpoint, str) and _CHECKPOINT_ID.fullmatch(checkpoint):
        return files.path(checkpoint)
    return Path(checkpoint)


async def _or_cancel(taking: asyncio.Future[KernelResource]) -> KernelResource:
    try:
        return await taking
    except asyncio.CancelledError:
        taking.cancel()
        raise
