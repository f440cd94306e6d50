"""Recovery: a new process continues the sessions of one that has died.

A kernel that is whole is adopted, with its variables. A session without one sleeps, and wakes from its newest
checkpoint; without a checkpoint it has ended. A cell that ran is recorded as interrupted, and never run again.

A kernel that does not answer costs only its own session, and only its own agent waits for it: ``take_over`` makes the
sessions this process's own, and a ``Takeover`` continues them beside other work. A failure that concerns them all (the
store cannot be written, the start is cancelled) costs none: the caller abandons the sessions that were adopted by then
to the next start, or has the others tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.container.reaper import Leftover
from orchestrator.errors import CheckpointError, EngineError, KernelDiedError, KernelStartError, SessionEndedError
from orchestrator.kernel.kernel import Kernel
from orchestrator.outcome import Outcome
from orchestrator.pool.kernelpool import KernelPool, KernelResource
from orchestrator.sessions.checkpoint import capture_between_cells
from orchestrator.sessions.continuing import Continuing
from orchestrator.sessions.owners import Owners, lost_sessions
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.session import KernelSession
from orchestrator.store.history import History

_log = logging.getLogger(__name__)
_AT_ONCE = 8  # kernels that are adopted at the same time, beside those whose agents ask for them
_PAUSE, _LONGEST_PAUSE = 5.0, 60.0  # seconds until a session that could not be continued is tried again
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
        containers: how many containers they had; of those without a session, once they are removed.
    """

    sessions: tuple[str, ...] = ()
    containers: int = 0


class Inheritance(Protocol):
    """The kernels of dead processes: what ``take_over`` needs of an ``Instance``."""

    async def inherit(self, kernel_ids: Collection[str]) -> tuple[list[Leftover], set[str]]: ...
    async def adopt(self, left: Leftover) -> Kernel: ...
    def would_start_alike(self, left: Leftover) -> bool: ...
    async def sweep(self) -> int: ...


async def recover(registry: SessionRegistry, pool: KernelPool, inheritance: Inheritance, owners: Owners) -> Recovery:
    """Take over the sessions of this host whose process is dead, and wait until each is continued.

    Raises:
        See ``take_over`` and ``Takeover.settled``. What was not adopted by then runs on.
    """
    taken = await take_over(registry, pool, inheritance, owners)
    try:
        await taken.settled()
    except BaseException:
        await taken.abandon()
        raise
    return taken.recovery


async def take_over(registry: SessionRegistry, pool: KernelPool, inheritance: Inheritance, owners: Owners) -> Takeover:
    """Make this process the owner of the sessions of this host whose process is dead, and begin to continue them.

    Sessions beyond the pool's ``max_kernels``, the least recently used ones, will sleep.

    Raises:
        StoreError: the store cannot be read or written.
        EngineError: the engine does not answer.
    """
    lost = lost_sessions(await registry.store.run(History.unended), owners)
    taken = Takeover(registry, pool, inheritance, {record.agent_id for record in lost})
    try:
        inherited, others = await inheritance.inherit({record.kernel_id for record in lost})
        left = {found.kernel_id: found for found in inherited}
        for record in sorted(lost, key=lambda record: record.last_used_at, reverse=True):
            session = registry.recall(record)
            is_free = owners.may_leave_kernels or record.kernel_id not in others
            if is_free and await session.take_over(record.owner):
                taken.add(session, left.get(record.kernel_id) if record.state == "live" else None)
    except BaseException:
        await taken.abandon()
        raise
    taken.begin(len(left))
    return taken


@dataclass(eq=False, slots=True)
class _Lost:
    """A session of a dead process, what is left of its kernel, and whether it may stay in that kernel."""

    session: KernelSession
    left: Leftover | None
    place: KernelResource | None
    stays: bool
    interrupted: bool = False
    commands: int = 0


class Takeover:
    """The sessions that one recovery took over, while they are continued a few at a time.

    Until its session is continued, an agent waits for it. Kernels that may be adopted have their places in the pool.

    Attributes:
        recovery: what was taken over. ``containers`` has all of them once everything is continued.
    """

    def __init__(
        self, registry: SessionRegistry, pool: KernelPool, inheritance: Inheritance, agents: Collection[str]
    ) -> None:
        self.recovery = Recovery()
        self._registry = registry
        self._pool = pool
        self._inheritance = inheritance
        self._agents = {agent: Continuing() for agent in agents if agent not in registry.continuing}
        registry.continuing.update(self._agents)
        self._room = pool.max_kernels - sum(not place.is_available for place in pool.kernels.values())
        self._lost: list[_Lost] = []
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._failure: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._failed: list[Exception] = []  # before ``go_on``: one for each session that waits for it
        self._goes_on = asyncio.Event()
        self._closing = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    def add(self, session: KernelSession, left: Leftover | None) -> None:
        """Add a session that this process owns now, before ``begin``."""
        place = None if left is None else self._keep_place(left.kernel_id)
        self._lost.append(_Lost(session, left, place, stays=self._room > 0))
        self._room -= left is not None

    def begin(self, containers: int) -> None:
        """Begin to continue the sessions.

        Args:
            containers: how many containers they have.
        """
        self.recovery = Recovery(tuple(lost.session.session_id for lost in self._lost), containers)
        self._work = asyncio.get_running_loop().create_task(self._continue_all())

    async def settled(self) -> bool:
        """Wait until everything is continued or has failed. Return False if it was abandoned instead.

        Raises:
            StoreError: a cell's end, or the state of a kernel that cannot stay, cannot be written. That session waits
                for ``go_on`` or ``abandon``.
        """
        if self._work is not None:
            either: set[asyncio.Future[Any]] = {self._work, self._failure}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self._work.done() and not self._goes_on.is_set():
                raise self._failure.result()
            if self._work.done() and not self._work.cancelled():
                self._work.result()
                return True
        return False

    @property
    def is_over(self) -> bool:
        """Whether everything is continued or abandoned."""
        return self._work is None or self._work.done()

    async def ended(self, seconds: float) -> bool:
        """Wait until everything is continued or abandoned. Return False if that takes longer."""
        return self._work is None or bool((await asyncio.wait({self._work}, timeout=seconds))[0])

    def go_on(self) -> None:
        """Try again with sessions that fail, until they are continued: the manager serves meanwhile."""
        self._goes_on.set()

    def close(self) -> None:
        """Finish what is under way, and leave sessions that fail to ``abandon``: the manager shuts down."""
        self._closing.set()
        self._goes_on.set()

    async def abandon(self) -> None:
        """Stop. The kernels that are not adopted run on for the next start. Those that are, the caller abandons."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})
        for lost in self._lost:
            if lost.place is not None and lost.place.kernel is None:
                self._pool.abandon(lost.place)
        self._lost.clear()
        for agent in list(self._agents):
            self._let_go(agent)

    def _keep_place(self, kernel_id: str) -> KernelResource:
        place = KernelResource(kernel_id)
        place.acquire()
        self._pool.add_kernel(place)
        return place

    def _let_go(self, agent: str) -> None:
        if (continuing := self._agents.pop(agent, None)) is not None:
            self._registry.continuing.pop(agent, None)
            continuing.end()

    async def _continue_all(self) -> None:
        by_agent: dict[str, list[_Lost]] = {agent: [] for agent in self._agents}
        for lost in self._lost:
            by_agent.setdefault(lost.session.agent_id, []).append(lost)
        async with asyncio.TaskGroup() as group:
            for agent, sessions in by_agent.items():
                group.create_task(self._continue_agent(agent, sessions))
        if not self._agents:
            self._lost.clear()  # or the kernels would live as long as the manager
        if not self._registry.continuing:  # else another recovery still has kernels to adopt, and sweeps after that
            swept = await _sweep(self._inheritance)
            self.recovery = Recovery(self.recovery.sessions, self.recovery.containers + swept)

    async def _continue_agent(self, agent: str, sessions: list[_Lost]) -> None:
        wanted = self._agents[agent].wanted if agent in self._agents else asyncio.Event()
        for lost in sessions:
            pause = _PAUSE
            while not await self._try_to_continue(lost, wanted):
                self._note_failed()
                await self._goes_on.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._closing.wait()
                if self._closing.is_set():
                    return
                pause = min(2 * pause, _LONGEST_PAUSE)
        self._let_go(agent)
        self._note_failed()

    def _note_failed(self) -> None:
        """Complete ``_failure`` once nothing but failed sessions is left."""
        if self._failed and len(self._failed) >= len(self._agents) and not self._failure.done():
            self._failure.set_result(self._failed[0])

    async def _try_to_continue(self, lost: _Lost, wanted: asyncio.Event) -> bool:
        try:
            async with self._place(wanted):
                await self._continue(lost)
        except Exception as error:  # noqa: BLE001 - it costs neither the other sessions nor their kernels
            self._failed.append(error)
            if (continuing := self._agents.get(lost.session.agent_id)) is not None:
                continuing.fail(error)
            _log.warning("the session of agent %s cannot be continued yet: %s", lost.session.agent_id, error)
            return False
        return True

    @contextlib.asynccontextmanager
    async def _place(self, wanted: asyncio.Event) -> AsyncIterator[None]:
        """Wait until few others are continued at the same time, or until the agent asks for its session."""
        place, asked = asyncio.ensure_future(self._places.acquire()), asyncio.ensure_future(wanted.wait())
        try:
            await asyncio.wait({place, asked}, return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            asked.cancel()
            if not place.cancel():
                self._places.release()

    async def _continue(self, lost: _Lost) -> None:
        """Continue a session in the kernel that is left of it, if there is one and it ``stays``; else asleep."""
        session, left = lost.session, lost.left
        if await session.end_running_cells(_INTERRUPTED):
            lost.interrupted = True
        lost.commands = await session.end_running_commands(Outcome.INTERRUPTED)
        if left is None or not (session.is_awake or await self._adopt(lost, left)):
            await self._continue_without_kernel(session)
        elif not self._inheritance.would_start_alike(left):  # its state moves to a kernel with today's locks
            await self._hand_over(session, Outcome.RECONFIGURED)
        elif not lost.stays:
            await self._hand_over(session, Outcome.EVICTED)

    async def _adopt(self, lost: _Lost, left: Leftover) -> bool:
        session, place = lost.session, lost.place or self._keep_place(left.kernel_id)
        lost.place = place
        try:
            place.kernel = kernel = await self._inheritance.adopt(left)
            session.adopt(kernel, interrupted=lost.interrupted, commands=lost.commands)
            self._registry.enter(session, place)
        except (KernelStartError, KernelDiedError, EngineError) as error:
            _log.warning("the kernel of agent %s could not be adopted: %s", session.agent_id, error)
            lost.place = None
            await self._pool.discard(place)
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
