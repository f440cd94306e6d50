"""Lifespan: starts the parts of one manager, guards their use, and closes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial

from orchestrator.errors import (
    CellblockError,
    EngineTimeoutError,
    KernelDiedError,
    ManagerClosedError,
    NotOwnerError,
    SessionEndedError,
)
from orchestrator.homeloop import HomeLoop
from orchestrator.instance import Instance
from orchestrator.limits import KernelResourceLimits
from orchestrator.policy.policy import Policy
from orchestrator.sessions.membership import ClusterOwners, Membership, NodesSessions
from orchestrator.sessions.owners import HostOwners, Owners
from orchestrator.sessions.recovery import Recovery, Takeover, take_over
from orchestrator.sessions.retention import Retention
from orchestrator.sessions.session import KernelSession
from orchestrator.settings import Settings
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import History
from orchestrator.wiring.parts import Parts
from orchestrator.wiring.termination import Termination

_log = logging.getLogger(__name__)
_RECOVERY = 10.0  # seconds that a start waits for the sessions of dead processes; what takes longer continues beside it
_LONGEST_RECOVERY = 20.0  # seconds that it may take in all, beyond the time for a checkpoint: see ``adoption``


class Lifespan:
    """The life of one manager's parts. Starts once and closes once; both are idempotent."""

    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        policy: Policy,
        resource_limits: KernelResourceLimits,
        membership: Membership | None = None,
    ) -> None:
        self._parts = parts
        self._membership = membership
        self._settings, self._policy, self._limits = settings, policy, resource_limits
        self._takeovers: list[Takeover] = []
        self._serving = False
        self._home = HomeLoop()
        self._starting = asyncio.Lock()
        self._store: History | None = None
        self._retention: Retention | None = None
        self._closing: asyncio.Task[None] | None = None
        self._cancel_sigterm: Callable[[], None] = lambda: None

    @property
    def recovery(self) -> Recovery:
        """What the start took over from dead processes; empty before ``start``."""
        return self._takeovers[0].recovery if self._takeovers else Recovery()

    def check_caller(self) -> None:
        """Refuse a caller after the shutdown has begun, or outside of the event loop in which the manager started.

        Raises:
            ManagerClosedError: ``close`` was called.
            WrongEventLoopError: see ``HomeLoop.check``.
        """
        self.refuse_when_closed()
        self._home.check()

    def check_loop(self) -> None:
        """Refuse a caller outside of the event loop in which the manager started.

        Raises:
            WrongEventLoopError: see ``HomeLoop.check``.
        """
        self._home.check()

    def live_retention(self) -> Retention:
        """Return what deletes old sessions. Call it after ``start``."""
        assert self._retention is not None
        return self._retention

    # Starting

    async def start(self) -> None:
        """Connect to the engine, take over the sessions of dead processes and begin to warm kernels.

        Waits up to 10 s until these sessions are continued. What takes longer continues beside other calls.

        Raises:
            See ``AgentKernelManager.start``.
        """
        while not self._serving:
            await self._connect()
            takeover = self._takeovers[0]
            try:
                async with asyncio.timeout(_RECOVERY) as limit:
                    settled = await takeover.settled()
            except BaseException as error:
                if isinstance(error, TimeoutError) and limit.expired():
                    settled = True
                elif await self._undo(takeover) or not isinstance(error, Exception):
                    raise
                else:
                    settled = False  # an agent came meanwhile: its manager goes on
            self.refuse_when_closed()
            if settled:
                self._serve()
        self.check_caller()

    async def _connect(self) -> None:
        """Do what must be done before an agent can be served."""
        self._enter_home()
        async with self._starting:
            self.refuse_when_closed()
            if self._parts.instance is not None:
                return
            self._enter_home()  # again: a start that failed meanwhile has left it
            try:
                await self._open()
            except BaseException:
                self._home.leave()
                raise

    def _serve(self) -> None:
        """Begin the work in the background. From now on the start is not undone. Idempotent."""
        if self._serving:
            return
        self._serving = True
        self._takeovers[0].go_on()
        for work in (
            self._parts.live_instance().keep_clean(),
            self._parts.hibernation.sleep_when_idle(),
            self.live_retention().run(),
            self._parts.monitor.run(),
            self._parts.pool.run(),
        ):
            self._parts.background.spawn(work)
        self._parts.pool.prewarm()

    async def _undo(self, takeover: Takeover) -> bool:
        """Close what a failed start has opened; the next start takes over the sessions that this one took over.

        Returns:
            False if the manager serves already, or closes: then nothing is done.
        """
        async with self._starting:
            if self._serving or self._closing is not None or takeover not in self._takeovers:
                return False
            self._takeovers.remove(takeover)
            await takeover.abandon()
            instance, store = self._parts.live_instance(), self._store
            self._parts.instance = self._store = self._retention = None
            self._cancel_sigterm()
            self._cancel_sigterm = lambda: None
            assert store is not None
            await self._undo_begin(store, instance)
            self._home.leave()
        return True

    def _enter_home(self) -> None:
        """Make the running event loop the manager's.

        Raises:
            ManagerClosedError, WrongEventLoopError: see ``check_caller``.
        """
        self.refuse_when_closed()
        if self._home.enter():
            self._starting = asyncio.Lock()  # the last one may belong to the event loop of a start that failed

    async def _open(self) -> None:
        store, files = await asyncio.to_thread(self._open_store)
        try:
            instance = await Instance.open(self._settings, self._policy, self._limits, self._parts.telemetry)
        except BaseException:
            await asyncio.to_thread(store.close)
            raise
        try:
            await self._begin(store, files, instance)
        except BaseException:
            await self._undo_begin(store, instance)
            raise
        self._parts.instance, self._store = instance, store
        self._retention = Retention(store, files, self._settings)
        self._cancel_sigterm = Termination.call_first(partial(self.close, keep_sessions=True))

    async def start_in_time(self, timeout: float | None) -> None:
        """Start within ``timeout`` seconds, and wait for no kernel of a dead process.

        A start that takes longer continues for later callers.

        Raises:
            EngineTimeoutError: the start takes longer.
            See ``start``.
        """
        self._enter_home()
        if self._serving:
            return
        starting = self._parts.background.add(asyncio.create_task(self._connect()))
        try:
            await asyncio.wait({starting}, timeout=timeout)
        except asyncio.CancelledError:
            starting.cancel()
            await asyncio.wait({starting})
            raise
        if not starting.done():
            starting.add_done_callback(_report_late_start)
            raise EngineTimeoutError(
                f"the manager did not start within {timeout:g} s, and continues to start: the engine or a recovery "
                "takes longer.",
                remedy="Try again, or run `cellblock doctor` to see whether the engine answers.",
            )
        if starting.cancelled():
            self.refuse_when_closed()
        starting.result()
        self.refuse_when_closed()
        self._serve()

    def _open_store(self) -> tuple[History, CheckpointFiles]:
        self._settings.refuse_foreign_folders()
        history = History.of(self._settings)
        try:
            return history, history.place.checkpoint_files()
        except BaseException:
            history.close()
            raise

    async def _begin(self, store: History, files: CheckpointFiles, instance: Instance) -> None:
        owners = self._owners(instance)
        self._parts.registry.open(store, files, owners.name)
        if self._membership is not None:
            self._membership.attach(
                NodesSessions(
                    self._membership.node_id,
                    store,
                    self._parts.registry,
                    owners,
                    self._parts.scheduler,
                    self._settings.policy,
                )
            )
        store.on_refused(partial(self._note_refused, asyncio.get_running_loop()))
        await self._parts.control.listen(instance.config.folder)
        if self._settings.metrics_port:
            self._parts.telemetry.serve_if_free(self._settings.metrics_address, self._settings.metrics_port)
        begin = partial(take_over, self._parts.registry, self._parts.pool, instance, owners)
        self._takeovers = [await begin()]  # the last step that can fail
        self._parts.acquiring.elsewhere.open(owners, partial(self._take_over_more, begin), self._parts.ask)

    def _owners(self, instance: Instance) -> Owners:
        if self._membership is not None:
            return ClusterOwners(self._membership, instance.id)
        return HostOwners(instance.id, (self._settings.state_path, self._settings.data_path))

    def _note_refused(self, loop: asyncio.AbstractEventLoop, error: NotOwnerError) -> None:
        """Let go of a session that another process has taken over. Called in the store's thread."""
        _log.warning("%s", error)
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the session
            loop.call_soon_threadsafe(self._parts.registry.disown, error.session_id)

    async def _take_over_more(self, begin: Callable[[], Awaitable[Takeover]]) -> None:
        """Take over what processes had that died after the start."""
        takeover = await begin()
        takeover.go_on()
        first, *others = self._takeovers
        self._takeovers = [first, *(other for other in others if not other.is_over), takeover]

    async def recovered(self) -> None:
        """Wait until all that was taken over is continued, or for as long as that may take at most."""
        longest = _LONGEST_RECOVERY + self._policy.sessions.checkpoint_time_s
        await asyncio.gather(*(takeover.ended(longest) for takeover in self._takeovers))

    async def _undo_begin(self, store: History, instance: Instance) -> None:
        """Close what a failed start has opened; the next start takes over the sessions that this one took over."""
        for session in list(self._parts.registry.sessions.values()):
            self._parts.registry.abandon(session)
        instance.disclaim()
        await self._parts.control.close()
        await asyncio.to_thread(self._parts.telemetry.close)
        await instance.close()
        await asyncio.to_thread(store.close)

    # Running

    def held(self, session: KernelSession) -> contextlib.AbstractContextManager[None]:
        """See ``Parts.held``."""
        return self._parts.held(session)

    @contextlib.asynccontextmanager
    async def in_use(self, session: KernelSession) -> AsyncIterator[None]:
        """Wake the session if it sleeps, and keep it awake, inside and outside ``acquire_kernel``.

        Raises:
            ManagerClosedError, WrongEventLoopError: see ``check_caller``.
        """
        self.check_caller()
        try:
            with session.in_use(), self.or_closed(KernelDiedError, SessionEndedError):
                await self._parts.registry.reap_if_dead(session)
                if session.asleep and session.ended is None:
                    request = session.lease_request
                    await self._parts.acquiring.session_of(
                        session.agent_id, None, session.caller, request.group, request.priority
                    )
                yield
        finally:
            self._parts.hibernation.make_room()

    def refuse_when_closed(self) -> None:
        """Raise ManagerClosedError once ``close`` was called."""
        if self._closing is not None:
            raise ManagerClosedError

    @contextlib.contextmanager
    def or_closed(self, *kinds: type[CellblockError]) -> Iterator[None]:
        """Raise ManagerClosedError in place of an error of these kinds that comes after ``close`` was called."""
        try:
            yield
        except kinds as error:
            if self._closing is not None and not isinstance(error, ManagerClosedError):
                raise ManagerClosedError from error
            raise

    # Closing

    async def close(self, *, keep_sessions: bool) -> None:
        """Close everything; the first call says what happens to the sessions. A cancelled call still finishes.

        Raises:
            EngineError: the engine does not answer; the next start on this host removes what is left.
            WrongEventLoopError: see ``HomeLoop.check``. From anywhere, a shutdown that has ended may be repeated.
        """
        if self._closing is not None and self._closing.done():
            return self._closing.result()
        self._home.enter()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(keep_sessions))
        cancelled = False
        while not self._closing.done():
            try:
                await asyncio.shield(self._closing)
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            raise asyncio.CancelledError
        return self._closing.result()

    async def _close(self, keep_sessions: bool) -> None:
        await self._parts.background.cancel()
        async with self._starting:
            await self._parts.background.cancel()
            self._parts.registry.closed = True
            await self._end_recovery()
            sessions = list(self._parts.registry.sessions.values())
            await self._parts.hibernation.close(keep=keep_sessions)
            await self._parts.control.close()
            await asyncio.to_thread(self._parts.telemetry.close)
            await self._parts.pool.close()
            for session in sessions:
                await session.settled()
            try:
                if self._parts.instance is not None:
                    await self._parts.instance.close()
            finally:
                if self._store is not None:
                    await asyncio.to_thread(self._store.close)
                self._cancel_sigterm()
                self._home.leave()

    async def _end_recovery(self) -> None:
        """Let kernels of dead processes move or end, so that nothing of them is left; else the next start has them."""
        for takeover in self._takeovers:
            takeover.close()
        await self.recovered()
        for takeover in self._takeovers:
            await takeover.abandon()


def _report_late_start(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("the manager could not start: %s", error)
