"""Wiring: makes the parts of one manager, starts them, closes them, and runs their background work.

The facade calls it; it never checks what a caller passes, and runs no cells.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from orchestrator.errors import (
    CellblockError,
    EngineTimeoutError,
    KernelDiedError,
    ManagerClosedError,
    SessionEndedError,
)
from orchestrator.homeloop import HomeLoop
from orchestrator.instance import Instance
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import MIB, KernelResourceLimits
from orchestrator.operator.controlsocket import ControlSocket, control_clients
from orchestrator.operator.monitor import Monitor
from orchestrator.operator.operations import Operations
from orchestrator.policy.policy import Policy
from orchestrator.pool.hostload import HostLoad
from orchestrator.pool.kernelpool import KernelPool
from orchestrator.pool.scheduler import Admission, Scheduler
from orchestrator.sessions.acquiring import Acquiring
from orchestrator.sessions.elsewhere import HANDOVER, hand_over
from orchestrator.sessions.forking import Forking
from orchestrator.sessions.hibernation import Hibernation
from orchestrator.sessions.owners import HostOwners
from orchestrator.sessions.recovery import Recovery, Takeover, take_over
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.restoring import Restoring
from orchestrator.sessions.retention import Retention
from orchestrator.sessions.session import KernelSession
from orchestrator.settings import Settings
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import History
from orchestrator.telemetry import Telemetry
from orchestrator.termination import Termination

_log = logging.getLogger(__name__)
_RECOVERY = 10.0  # seconds that a start waits for the sessions of dead processes; what takes longer continues beside it
_LONGEST_RECOVERY = 20.0  # seconds that it may take in all, beyond the time for a checkpoint: see ``adoption``


class Wiring:
    """The parts of one manager. Starts once and closes once; both are idempotent."""

    def __init__(
        self, max_kernels: int, settings: Settings, policy: Policy, resource_limits: KernelResourceLimits
    ) -> None:
        self._settings, self._policy, self._limits = settings, policy, resource_limits
        self.telemetry = Telemetry()
        self.monitor = Monitor(self._live_kernels, resource_limits.max_memory_mb, policy.limits.warn_percent)
        self.pool = self._make_pool(max_kernels)
        self.registry = SessionRegistry(self.pool, policy, self._spawn)
        self.hibernation = Hibernation(self.registry, self.pool, resource_limits, policy, self._spawn)
        self.acquiring = Acquiring(self.registry, self.hibernation, self.pool)
        self.restoring = Restoring(self.registry, self.acquiring, self.hibernation, self.pool)
        self.forking = Forking(self.registry)
        self.telemetry.watch_pool(self.pool.counts)
        self.operations = Operations(
            pool=self.pool,
            sessions=self.registry.sessions,
            monitor=self.monitor,
            limits=resource_limits,
            instance=self._describe,
            end_session=self.acquiring.end,
            held_back=self.registry.backoff.waits,
        )
        self._control = ControlSocket({**self.operations.commands(), HANDOVER: self._hand_over})
        self._takeovers: list[Takeover] = []
        self._serving = False
        self._home = HomeLoop()
        self._instance: Instance | None = None
        self._starting = asyncio.Lock()
        self._store: History | None = None
        self._retention: Retention | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._cancel_sigterm: Callable[[], None] = lambda: None

    @property
    def recovery(self) -> Recovery:
        """What the start took over from dead processes; empty before ``start``."""
        return self._takeovers[0].recovery if self._takeovers else Recovery()

    @property
    def runtime(self) -> str:
        """The container runtime of new kernels; "" before ``start``."""
        return "" if self._instance is None else self._instance.runtime

    @property
    def instance_id(self) -> str:
        """The id of this manager's instance; "" before ``start``."""
        return "" if self._instance is None else self._instance.id

    def live_instance(self) -> Instance:
        """Return the instance. Call it after ``start``."""
        assert self._instance is not None
        return self._instance

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
            if self._instance is not None:
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
            self.live_instance().keep_clean(),
            self.hibernation.sleep_when_idle(),
            self.live_retention().run(),
            self.monitor.run(),
            self.pool.run(),
        ):
            self._spawn(work)
        self.pool.prewarm()

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
            instance, store = self.live_instance(), self._store
            self._instance = self._store = self._retention = None
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
            instance = await Instance.open(self._settings, self._policy, self._limits, self.telemetry)
        except BaseException:
            await asyncio.to_thread(store.close)
            raise
        try:
            await self._begin(store, files, instance)
        except BaseException:
            await self._undo_begin(store, instance)
            raise
        self._instance, self._store = instance, store
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
        starting = asyncio.create_task(self._connect())
        self._tasks.add(starting)
        starting.add_done_callback(self._tasks.discard)
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
        quota = self._settings.agent_quota_mb * MIB
        history = History.open(self._settings.history_url, self._settings.data_path, agent_quota=quota)
        try:
            return history, CheckpointFiles(self._settings.data_path)
        except BaseException:
            history.close()
            raise

    async def _begin(self, store: History, files: CheckpointFiles, instance: Instance) -> None:
        owners = HostOwners(instance.id, (self._settings.state_path, self._settings.data_path))
        self.registry.open(store, files, owners.name)
        await self._control.listen(instance.config.folder)
        if self._settings.metrics_port:
            self.telemetry.serve_if_free(self._settings.metrics_address, self._settings.metrics_port)
        begin = partial(take_over, self.registry, self.pool, instance, owners)
        self._takeovers = [await begin()]  # the last step that can fail
        self.acquiring.elsewhere.open(owners, partial(self._take_over_more, begin), self._ask)

    async def _take_over_more(self, begin: Callable[[], Awaitable[Takeover]]) -> None:
        """Take over what processes had that died after the start."""
        takeover = await begin()
        takeover.go_on()
        first, *others = self._takeovers
        self._takeovers = [first, *(other for other in others if not other.is_over), takeover]

    async def _ask(self, instance: str, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """Send a request to the control socket of another instance on this host."""
        for client in await asyncio.to_thread(control_clients, self._settings.state_path):
            if client.instance == instance:
                return await client.ask(request, timeout)
        return {"error": "its control socket is not in this process's state folder"}

    async def _hand_over(self, request: dict[str, Any]) -> dict[str, Any]:
        return await hand_over(self.registry, str(request.get("agent")))

    async def recovered(self) -> None:
        """Wait until all that was taken over is continued, or for as long as that may take at most."""
        longest = _LONGEST_RECOVERY + self._policy.sessions.checkpoint_time_s
        await asyncio.gather(*(takeover.ended(longest) for takeover in self._takeovers))

    async def _undo_begin(self, store: History, instance: Instance) -> None:
        """Close what a failed start has opened; the next start takes over the sessions that this one took over."""
        for session in list(self.registry.sessions.values()):
            self.registry.abandon(session)
        instance.disclaim()
        await self._control.close()
        await asyncio.to_thread(self.telemetry.close)
        await instance.close()
        await asyncio.to_thread(store.close)

    # Running

    @contextlib.asynccontextmanager
    async def in_use(self, session: KernelSession) -> AsyncIterator[None]:
        """Wake the session if it sleeps, and keep it awake, inside and outside ``acquire_kernel``.

        Raises:
            ManagerClosedError, WrongEventLoopError: see ``check_caller``.
        """
        self.check_caller()
        try:
            with session.in_use(), self.or_closed(KernelDiedError, SessionEndedError):
                await self.registry.reap_if_dead(session)
                if session.asleep and session.ended is None:
                    request = session.lease_request
                    await self.acquiring.session_of(
                        session.agent_id, None, session.caller, request.group, request.priority
                    )
                yield
        finally:
            self.hibernation.make_room()

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

    def _make_pool(self, max_kernels: int) -> KernelPool:
        policy, warm = self._policy, self._settings.warm_kernels
        host = HostLoad(self._memory_of_kernels)
        admission = Admission(self._limits, policy.scheduling)
        return KernelPool(
            max_kernels,
            start=self._start_kernel,
            warm=policy.pool.warm if warm is None else warm,
            rules=policy.pool,
            scheduler=Scheduler(policy.scheduling, policy.groups),
            room=lambda kernels, starting: admission.room(host.read(), kernels, starting),
            telemetry=self.telemetry,
        )

    async def _start_kernel(self) -> Kernel:
        return await self.live_instance().start_kernel()

    def _memory_of_kernels(self) -> int:
        """Return the bytes that the pool's kernels used at their last samples."""
        latest = self.monitor.latest
        return sum(latest[kernel_id].usage.memory for kernel_id in self.pool.kernels if kernel_id in latest)

    def _live_kernels(self) -> list[Kernel]:
        kernels = (resource.kernel for resource in self.pool.kernels.values())
        return [kernel for kernel in kernels if kernel is not None and kernel.is_alive]

    def _describe(self) -> dict[str, Any]:
        return {
            "instance": self.instance_id,
            "pid": os.getpid(),
            "runtime": self.runtime,
            "policy": self._settings.policy,
        }

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_report)

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
        await self._cancel_tasks()
        async with self._starting:
            await self._cancel_tasks()
            self.registry.closed = True
            await self._end_recovery()
            sessions = list(self.registry.sessions.values())
            await self.hibernation.close(keep=keep_sessions)
            await self._control.close()
            await asyncio.to_thread(self.telemetry.close)
            await self.pool.close()
            for session in sessions:
                await session.settled()
            try:
                if self._instance is not None:
                    await self._instance.close()
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

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _report_late_start(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("the manager could not start: %s", error)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a background task of the manager failed", exc_info=error)
