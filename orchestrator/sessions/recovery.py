"""Recovery: a new process continues the sessions of one that has died.

A kernel that is whole is adopted, with its variables. A session without one sleeps, and wakes from its newest
checkpoint; without a checkpoint it has ended. A cell that ran is recorded as interrupted, and never run again.

A kernel that does not answer costs only its own session. A failure that concerns them all (the store cannot be written,
the start is cancelled) costs none: the caller abandons the sessions that were adopted by then to the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.container.reaper import Leftover
from orchestrator.errors import CheckpointError, EngineError, KernelDiedError, KernelStartError, SessionEndedError
from orchestrator.kernel.kernel import Kernel
from orchestrator.outcome import Outcome
from orchestrator.pool.kernelpool import KernelPool, KernelResource
from orchestrator.sessions.checkpoint import capture_between_cells
from orchestrator.sessions.owners import Owners, lost_sessions
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import History, SessionRecord

_log = logging.getLogger(__name__)
_AT_ONCE = 8  # kernels that are adopted at the same time
_INTERRUPTED: dict[str, Any] = {
    "status": "error",
    "outcome": Outcome.INTERRUPTED,
    "outputs": [],
    "error": {
        "ename": "OrchestratorLost",
        "evalue": "the orchestrator ended while this cell ran; it was not run again",
        "traceback": [],
        "traceback_text": "",
    },
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """What dead processes had left.

    Attributes:
        sessions: the ids of their sessions, which this process owns now.
        containers: how many containers they had.
    """

    sessions: tuple[str, ...] = ()
    containers: int = 0


class Inheritance(Protocol):
    """The kernels of dead processes: what ``recover`` needs of an ``Instance``."""

    async def inherit(self, kernel_ids: Collection[str]) -> tuple[list[Leftover], set[str]]: ...
    async def adopt(self, left: Leftover) -> Kernel: ...
    def would_start_alike(self, left: Leftover) -> bool: ...
    async def sweep(self) -> int: ...


async def recover(registry: SessionRegistry, pool: KernelPool, inheritance: Inheritance, owners: Owners) -> Recovery:
    """Take over the sessions of this host whose process is dead, and remove what else dead processes left.

    Sessions beyond the pool's ``max_kernels``, the least recently used ones, sleep.

    Raises:
        StoreError: the store, or the state of a kernel that cannot stay, cannot be read or written.
        EngineError: the engine does not answer.
    """
    lost = lost_sessions(await registry.store.run(History.unended), owners)
    inherited, others = await inheritance.inherit({record.kernel_id for record in lost})
    left = {found.kernel_id: found for found in inherited}
    mine: list[tuple[SessionRecord, KernelSession]] = []
    heir = _Heir(registry, pool, inheritance)
    with _continuing(registry, {record.agent_id for record in lost}):
        for record in sorted(lost, key=lambda record: record.last_used_at, reverse=True):
            session = registry.recall(record)
            if record.kernel_id not in others and await session.take_over(record.owner):
                mine.append((record, session))
        room = pool.max_kernels - len(registry.sessions)
        work = [
            heir.continue_session(session, left.get(record.kernel_id) if record.state == "live" else None, stays=stays)
            for (record, session), stays in zip(mine, (n < room for n in range(len(mine))), strict=True)
        ]
        for failure in await asyncio.gather(*work, return_exceptions=True):
            if failure is not None:
                raise failure
    return Recovery(tuple(record.session_id for record, _ in mine), len(left) + await _sweep(inheritance))


@contextlib.contextmanager
def _continuing(registry: SessionRegistry, agents: Collection[str]) -> Iterator[None]:
    """Let calls that need the session of one of these agents wait."""
    events = {agent: asyncio.Event() for agent in agents}
    registry.continuing.update(events)
    try:
        yield
    finally:
        for agent, event in events.items():
            registry.continuing.pop(agent, None)
            event.set()


class _Heir:
    """Continues the sessions of dead processes, a few at a time."""

    def __init__(self, registry: SessionRegistry, pool: KernelPool, inheritance: Inheritance) -> None:
        self._registry = registry
        self._pool = pool
        self._inheritance = inheritance
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def continue_session(self, session: KernelSession, left: Leftover | None, *, stays: bool) -> None:
        """Continue a session in the kernel that is left of it, if there is one and it ``stays``; else asleep."""
        async with self._places:
            interrupted = await session.end_running_cells(_INTERRUPTED)
            if left is None or not await self._adopt(session, left, interrupted=interrupted):
                await self._continue_without_kernel(session)
            elif not self._inheritance.would_start_alike(left):  # its state moves to a kernel with today's locks
                await self._hand_over(session, Outcome.RECONFIGURED)
            elif not stays:
                await self._hand_over(session, Outcome.EVICTED)

    async def _adopt(self, session: KernelSession, left: Leftover, *, interrupted: bool) -> bool:
        try:
            kernel = await self._inheritance.adopt(left)
            session.adopt(kernel, interrupted=interrupted)
            resource = KernelResource(kernel.kernel_id, kernel)
            resource.acquire()
            self._pool.add_kernel(resource)
            try:
                self._registry.enter(session, resource)
            except KernelDiedError:
                self._pool.release(resource)
                raise
        except (KernelStartError, KernelDiedError, EngineError) as error:
            _log.warning("the kernel of agent %s could not be adopted: %s", session.agent_id, error)
            return False
        self._registry.inherited.add(session.session_id)
        return True

    async def _continue_without_kernel(self, session: KernelSession) -> None:
        self._registry.remember_end(session.agent_id, Outcome.ORCHESTRATOR_LOST)
        if await self._registry.has_checkpoint(session.session_id):
            await session.sleep(Outcome.ORCHESTRATOR_LOST)
        else:
            await session.end(Outcome.ORCHESTRATOR_LOST)
            await self._registry.drop_checkpoints(session)

    async def _hand_over(self, session: KernelSession, reason: str) -> None:
        """Discard a session's kernel. Its state, as far as it can be captured, continues in another kernel.

        Raises:
            StoreError: the state cannot be written. The session keeps its kernel.
        """
        try:
            await capture_between_cells(session, self._registry.files, asked_for=False)
        except (CheckpointError, KernelDiedError, SessionEndedError) as error:
            _log.warning("the newest state of agent %s's session is lost: %s", session.agent_id, error)
        await self._registry.give_up(session, reason)


async def _sweep(inheritance: Inheritance) -> int:
    """Remove what no process continues. Returns how many containers. The next start removes what the engine refuses."""
    try:
        return await inheritance.sweep()
    except EngineError as error:
        _log.warning("not everything that dead processes left is removed yet: %s", error)
        return 0
