"""SessionKeeper: which agent has which session: found, woken, made, forked, restored, taken over or ended.

A session outlives its kernels. One that gives its kernel up leaves a checkpoint, sleeps, and is woken in a fresh kernel
when its agent wants it: ``max_kernels`` bounds kernels, not sessions. It never chooses which session has to sleep.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import uuid
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import (
    CellblockError,
    CheckpointError,
    CheckpointMissingError,
    InvalidInputError,
    KernelDiedError,
    ManagerClosedError,
    SessionEndedError,
)
from orchestrator.inputs import LONGEST_AGENT_ID, check_agent_id
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import Deadline
from orchestrator.policy.policy import Policy
from orchestrator.pool.kernelpool import KernelPool, KernelResource
from orchestrator.pool.scheduler import LeaseRequest
from orchestrator.sessions.checkpoint import Checkpoint, capture, copy, load
from orchestrator.sessions.hibernation import Hibernation
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.session import KernelSession, Restored, names_of
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import CheckpointRecord, History, SessionRecord

_log = logging.getLogger(__name__)
_LONGEST_WAIT = 60.0  # seconds of a wait that nobody bounded, and that keeps something from others
_ANEW = "Begin anew with `await manager.end_session(agent_id)`."
_CHECKPOINT_ID = re.compile(r"[0-9a-f]{32}")


class SessionKeeper:
    """The sessions of one manager, by agent.

    Args:
        hibernation: makes room in the pool when a kernel is wanted.
    """

    def __init__(self, registry: SessionRegistry, hibernation: Hibernation, pool: KernelPool, policy: Policy) -> None:
        self._registry = registry
        self._hibernation = hibernation
        self._pool = pool
        self._load_time = policy.sessions.checkpoint_time_s
        self._checkpoint_every = policy.sessions.checkpoint_every

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
        async with self._registry.locked(agent_id, timeout):
            session = self._registry.sessions.get(agent_id)
            if session is not None and session.is_awake:
                self._registry.inherited.discard(session.session_id)
                self._registry.charge(
                    session, LeaseRequest(session.lease_request.group if group is None else group, priority)
                )
                return session
            await self._registry.reaped(agent_id, deadline)
            if self._registry.closed:
                raise ManagerClosedError("the manager has been shut down.", remedy="Make a new one.")
            record = await self._sleeper(agent_id)
            request = self._lease_request(record, group, priority)
            kernel, resource = await self._lease(deadline, request)
            try:
                if record is not None:
                    session = await self._wake(record, kernel, resource)
                else:
                    session = await self._begin(agent_id, kernel, resource, caller)
                session.lease_request = request
                self._settle_in(session, resource, caller)
            except BaseException:
                self._pool.release(resource)
                raise
            return session

    async def end(self, agent_id: str, reason: str) -> bool:
        """End the agent's session, awake or asleep, and discard its kernel. Returns whether there was one."""
        session = self._registry.sessions.get(agent_id)
        if session is None:
            async with self._registry.locked(agent_id, _LONGEST_WAIT):  # it may just be on its way to sleep, or awake
                session = self._registry.sessions.get(agent_id)
                if session is None:
                    return self._registry.is_open and await self._end_sleeper(agent_id, reason)
        await self._registry.end(session, reason)
        return True

    async def _end_sleeper(self, agent_id: str, reason: str) -> bool:
        record = await self._sleeper(agent_id)
        if record is None:
            return False
        if not await self._registry.store.run(History.take_ownership, record.session_id, None, self._registry.owner):
            return False  # another process has just woken it
        if (held := self._registry.asleep.pop(record.session_id, None)) is not None:
            held.ended, held.asleep = reason, False
        await self._registry.forget(record.session_id, reason)
        return True

    async def checkpoint(self, session: KernelSession, *, asked_for: bool = True) -> Checkpoint:
        """Capture the session's state once no cell runs. Raises what ``checkpoint.capture`` raises."""
        async with session.between_cells():
            return await capture(session, self._registry.files, asked_for=asked_for)

    async def checkpoint_if_due(self, session: KernelSession) -> None:
        """Capture the session's state after every so many cells, as the policy says."""
        every = self._checkpoint_every
        if every and session.cell_count % every == 0 and session.is_awake:
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
        path = _path_of(checkpoint, self._registry.files)
        async with self._registry.locked(session.agent_id, timeout), session.between_cells():
            session.live_kernel()
            kernel, resource = await self._lease(
                Deadline(_LONGEST_WAIT if timeout is None else timeout), session.lease_request, room_for=session
            )
            resource.served = True  # whatever comes of it, nobody else gets this kernel
            try:
                restored = await load(kernel, self._registry.files, path, session.agent_id, self._load_time)
                session.live_kernel()  # it may have ended meanwhile, or its own kernel died
                await self._note_life(session.session_id, kernel)
                session.live_kernel()
                old = self._registry.take_lease(session)
                session.attach(kernel)
                session.restored = restored
                self._settle_in(session, resource, session.caller)
            except BaseException:
                self._pool.release(resource)
                raise
            try:  # else it would be woken from a checkpoint of the state that it has just left
                await capture(session, self._registry.files, asked_for=False)
            except CellblockError as error:
                session.notices.append(f"the restored state could not be kept for a later kernel: {error.message}")
            finally:
                if old is not None:
                    await self._pool.discard(old)
        session.note(kernel, "session.restored", checkpoint=restored.checkpoint_id, lost=len(restored.lost))
        return restored

    async def fork(
        self, session: KernelSession, count: int, agent_ids: Sequence[str] | None = None
    ) -> list[KernelSession]:
        """Make sleeping sessions with this one's state, one for each agent id, or with ids that are free.

        Raises:
            InvalidInputError: an agent id is wrong, doubled, or has a session.
            CheckpointError, StoreError, KernelDiedError: see ``checkpoint.capture``.
        """
        async with session.between_cells():  # of two forks at once each finds its own ids, and its own checkpoint
            return await self._fork(session, await self._free_ids(session.agent_id, count, agent_ids))

    async def _fork(self, session: KernelSession, agent_ids: Sequence[str]) -> list[KernelSession]:
        store, files = self._registry.store, self._registry.files
        made = await capture(session, files, asked_for=False)
        kernel = session.live_kernel()
        forks = [
            KernelSession(
                uuid.uuid4().hex,
                kernel.kernel_id,
                agent_id,
                parent_id=session.session_id,
                store=store,
                policy=self._registry.policy,
                telemetry=self._registry.telemetry,
            )
            for agent_id in agent_ids
        ]
        noted: list[tuple[str, CheckpointRecord]] = []
        try:
            for fork in forks:
                fork.lease_request = session.lease_request
                fork.detach()
                noted.append((fork.agent_id, await copy(made, fork, files)))
            names = {"kernel_id": kernel.kernel_id, "runtime": kernel.runtime}
            await store.run(History.add_forks, session.session_id, noted, **names)
        except BaseException:
            for _, record in noted:
                await asyncio.to_thread(files.remove, record.checkpoint_id)
            raise
        self._registry.asleep.update({fork.session_id: fork for fork in forks})
        return forks

    def adopt(self, record: SessionRecord, kernel: Kernel, *, interrupted: bool) -> KernelSession:
        """Go on with a session of a process that has died, in the kernel that it had.

        Args:
            interrupted: whether one of its cells ran.

        Raises:
            KernelDiedError: it has just ended.
        """
        session = self._registry.recall(record, kernel)
        if interrupted:
            session.notices.append(
                f"the orchestrator ended while cell {record.cells} ran: the cell was interrupted, not run again; what "
                "it had done by then has stayed"
            )
        resource = KernelResource(kernel.kernel_id, kernel)
        resource.acquire()
        self._pool.add_kernel(resource)
        try:
            self._settle_in(session, resource, "")
        except KernelDiedError:
            self._pool.release(resource)
            raise
        self._registry.inherited.add(session.session_id)
        session.note(kernel, "session.adopted", cells=record.cells)
        return session

    async def hand_over(self, session: KernelSession, reason: str) -> None:
        """Take a session's kernel away; its state, as far as it can be captured, goes on in another one.

        Raises:
            StoreError: the state cannot be written; the session keeps its kernel.
        """
        try:
            await self.checkpoint(session, asked_for=False)
        except (CheckpointError, KernelDiedError, SessionEndedError) as error:
            _log.warning("the newest state of agent %s's session is lost: %s", session.agent_id, error)
        await self._registry.give_up(session, reason)

    async def inherit(self, record: SessionRecord) -> bool:
        """Go on with a session of a dead process whose kernel is gone. Returns whether it has a checkpoint."""
        self._registry.remember_end(record.agent_id, "orchestrator_lost")
        if await self._registry.has_checkpoint(record.session_id):
            self._registry.store.submit(History.session_sleeps, record.session_id)
            return True
        await self._registry.forget(record.session_id, "orchestrator_lost")
        return False

    # How

    async def _sleeper(self, agent_id: str) -> SessionRecord | None:
        """Find the agent's session that sleeps, and that no other process has."""
        found = await self._registry.store.run(History.sessions_of, agent_id)
        return next((record for record in found if record.state == "asleep" and record.owner is None), None)

    def _lease_request(self, record: SessionRecord | None, group: str | None, priority: int) -> LeaseRequest:
        """For whom a kernel is asked; a sleeping session's group is known as long as somebody holds the session."""
        held = None if record is None else self._registry.asleep.get(record.session_id)
        known = "" if held is None else held.lease_request.group
        return LeaseRequest(known if group is None else group, priority)

    async def _lease(
        self, deadline: Deadline | None, request: LeaseRequest, room_for: KernelSession | None = None
    ) -> tuple[Kernel, KernelResource]:
        while True:
            remaining = None if deadline is None else deadline.remaining()
            taking = asyncio.ensure_future(self._pool.acquire(remaining, request=request))
            await asyncio.sleep(0)  # it takes its place in the queue
            self._hibernation.make_room(spare=room_for)
            resource = await _or_cancel(taking)
            if resource.kernel is not None and resource.kernel.is_alive:
                return resource.kernel, resource
            self._pool.release(resource)  # it died between being ready and being taken

    async def _free_ids(self, agent_id: str, count: int, wanted: Sequence[str] | None) -> list[str]:
        numbered = (f"{agent_id[: LONGEST_AGENT_ID - 12]}~{number}" for number in itertools.count(1))
        free: list[str] = []
        for candidate in numbered if wanted is None else wanted:
            check_agent_id(candidate)
            taken = candidate in free or bool(await self._registry.store.run(History.sessions_of, candidate))
            if taken and wanted is not None:
                raise InvalidInputError(f"agent {candidate!r} has a session already.")
            if not taken:
                free.append(candidate)
            if len(free) == count:
                break
        return free

    async def _begin(self, agent_id: str, kernel: Kernel, resource: KernelResource, caller: str) -> KernelSession:
        session = KernelSession.of(
            agent_id,
            kernel,
            self._registry.policy,
            store=self._registry.store,
            telemetry=self._registry.telemetry,
        )
        session.caller = caller
        session.previous_end = self._registry.take_end(agent_id)
        resource.served = True  # whatever comes of it, nobody else gets this kernel
        try:
            await self._registry.store.run(
                History.add_session,
                session.session_id,
                agent_id,
                owner=self._registry.owner,
                kernel_id=kernel.kernel_id,
                runtime=kernel.runtime,
            )
        except BaseException:
            self._registry.store.submit(History.session_ends, session.session_id, "never_started")
            raise
        session.note(kernel, "session.started", previous_end=session.previous_end)
        return session

    async def _wake(self, record: SessionRecord, kernel: Kernel, resource: KernelResource) -> KernelSession:
        store, files = self._registry.store, self._registry.files
        made = await store.run(History.checkpoints_of, record.session_id)
        if not made:
            raise CheckpointMissingError(
                f"the session of agent {record.agent_id!r} has no checkpoint to be woken from.", remedy=_ANEW
            )
        if not await store.run(History.take_ownership, record.session_id, None, self._registry.owner):
            raise CheckpointError(f"another process has just woken the session of agent {record.agent_id!r}.")
        resource.served = True  # whatever comes of it, nobody else gets this kernel
        try:
            restored = await load(kernel, files, files.path(made[0].checkpoint_id), record.agent_id, self._load_time)
            await self._note_life(record.session_id, kernel)
        except BaseException as error:
            store.submit(History.session_sleeps, record.session_id)
            if isinstance(error, CheckpointError):
                error.remedy = f"{error.remedy} {_ANEW}".strip()
            raise
        session = self._registry.recall(record, kernel)
        session.restored = restored
        session.previous_end = self._registry.take_end(record.agent_id) or session.previous_end
        session.notices += _notices(restored, record.cells, session.previous_end)
        session.note(kernel, "session.woken", checkpoint=restored.checkpoint_id, lost=len(restored.lost))
        return session

    async def _note_life(self, session_id: str, kernel: Kernel) -> None:
        names = {"owner": self._registry.owner, "kernel_id": kernel.kernel_id, "runtime": kernel.runtime}
        await self._registry.store.run(History.session_lives, session_id, **names)

    def _settle_in(self, session: KernelSession, resource: KernelResource, caller: str) -> None:
        self._registry.enter(session, resource, caller)
        self._hibernation.make_room()


def _notices(restored: Restored, cells: int, reason: str | None) -> list[str]:
    """What an agent has to know of its woken session, or nothing."""
    notices = []
    if cells > restored.cell:
        notices.append(
            f"this session's kernel ended ({reason or 'unknown'}), and it goes on from its checkpoint after cell "
            f"{restored.cell}: what the {cells - restored.cell} cells after that did is lost"
        )
    if restored.lost:
        notices.append(f"this session moved to a fresh kernel, and these were not restored: {names_of(restored.lost)}")
    return notices


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
