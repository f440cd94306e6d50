"""AgentKernelManager: the public facade. Wires the parts, and owns the lifetimes of sessions and kernels.

Used in an async program, from one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nbformat import NotebookNode

from orchestrator.errors import (
    EngineTimeoutError,
    InvalidInputError,
    KernelTimeoutError,
    ManagerClosedError,
    UnknownKernelNameError,
)
from orchestrator.inputs import check_agent_id, check_code, check_lease_request
from orchestrator.instance import Instance
from orchestrator.kernel import transfer
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import MIB, Deadline, KernelResourceLimits
from orchestrator.operator.controlsocket import ControlSocket
from orchestrator.operator.monitor import Monitor
from orchestrator.operator.operations import Operations
from orchestrator.output.events import CellFinished, Event, InputHandler
from orchestrator.policy.policy import Policy
from orchestrator.pool.hostload import HostLoad
from orchestrator.pool.kernelpool import KernelPool
from orchestrator.pool.scheduler import Admission, Scheduler
from orchestrator.sessions import checkpoint as checkpoints
from orchestrator.sessions import notebook
from orchestrator.sessions.acquiring import Acquiring
from orchestrator.sessions.checkpoint import Checkpoint, capture_between_cells, capture_if_due
from orchestrator.sessions.forking import Forking
from orchestrator.sessions.hibernation import Hibernation
from orchestrator.sessions.owners import HostOwners
from orchestrator.sessions.recovery import Recovery, recover
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.restored import Restored
from orchestrator.sessions.restoring import Restoring
from orchestrator.sessions.retention import Retention
from orchestrator.sessions.session import KernelSession
from orchestrator.settings import Settings
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import History
from orchestrator.telemetry import Telemetry
from orchestrator.termination import Termination

_log = logging.getLogger(__name__)

KERNEL_NAMES = ("python3",)


class AgentKernelManager:
    """Gives every agent a kernel of its own, in a locked container of its own.

    Use it as an async context manager, or call ``await shutdown()`` at the end; the first ``acquire_kernel`` starts
    one that was not entered. Where the program leaves SIGTERM to its default, ``shutdown(keep_sessions=True)`` comes
    before that.

    Args:
        max_kernels: containers at the same time, those kept warm included.
        kernel_name: "python3".
        resource_limits: for every kernel; None: those of the policy.
        settings: None: from CELLBLOCK_* variables and ``.env``.

    Attributes:
        pool: the kernels.
        monitor: what they use.
        telemetry: metrics and spans; ``telemetry.registry`` is for an endpoint of the program around.
        sessions: the live sessions, by agent id.
        resource_limits: the limits in force.
        recovery: what processes that had died left on this host, when this manager started.

    Raises:
        ValueError: ``max_kernels`` is below 1.
        UnknownKernelNameError, SettingsError, PolicyError: as they say.
    """

    def __init__(
        self,
        max_kernels: int = 10,
        kernel_name: str = "python3",
        resource_limits: KernelResourceLimits | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        if kernel_name not in KERNEL_NAMES:
            raise UnknownKernelNameError(
                f"the sandbox image has no kernel {kernel_name!r}.", remedy=f"It has: {', '.join(KERNEL_NAMES)}."
            )
        self.settings = settings or Settings.load()
        self.policy = Policy.load(self.settings.policy)
        self.max_kernels = max_kernels
        self.kernel_name = kernel_name
        self.resource_limits = resource_limits or self.policy.resource_limits()
        self.telemetry = Telemetry()
        self.monitor = Monitor(self._live_kernels)
        self.pool = self._make_pool()
        self._registry = SessionRegistry(self.pool, self.telemetry, self._spawn)
        self._hibernation = Hibernation(self._registry, self.pool, self.resource_limits, self.policy, self._spawn)
        self._acquiring = Acquiring(self._registry, self._hibernation, self.pool)
        self._restoring = Restoring(self._registry, self._acquiring, self._hibernation, self.pool)
        self._forking = Forking(self._registry)
        self.sessions = self._registry.sessions
        self.telemetry.watch_pool(self.pool.counts)
        self._operations = Operations(
            pool=self.pool,
            sessions=self.sessions,
            monitor=self.monitor,
            limits=self.resource_limits,
            instance=self._describe,
            end_session=self.end_session,
        )
        self._control = ControlSocket(self._operations.commands())
        self.recovery = Recovery()
        self._instance: Instance | None = None
        self._opening = asyncio.Lock()
        self._store: History | None = None
        self._retention: Retention | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None
        self._call_off: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def start(self) -> None:
        """Connect to the engine and begin to warm kernels. Does nothing when that was done.

        Raises:
            ManagerClosedError: the manager was shut down.
            EngineUnavailableError, EnginePermissionError, ImageMissingError, UnknownRuntimeError, SettingsError:
                kernels cannot be started here; the message says what to do.
        """
        async with self._opening:
            self._refuse_when_closed()
            if self._instance is not None:
                return
            store, files = await asyncio.to_thread(self._open_store)
            try:
                instance = await Instance.open(self.settings, self.policy, self.resource_limits, self.telemetry)
            except BaseException:
                await asyncio.to_thread(store.close)
                raise
            try:
                owners = HostOwners(instance.id)
                self._registry.open(store, files, owners.name)
                await self._control.listen(instance.config.folder)
                if self.settings.metrics_port:
                    self.telemetry.serve(self.settings.metrics_address, self.settings.metrics_port)
                self.recovery = await recover(self._registry, self.pool, instance, owners)  # the last that can fail
            except BaseException:  # what was taken over by then is left to the next start
                for session in list(self.sessions.values()):
                    self._registry.abandon(session)
                instance.disclaim()
                await self._control.close()
                await asyncio.to_thread(self.telemetry.close)
                await instance.close()
                await asyncio.to_thread(store.close)
                raise
            self._instance, self._store = instance, store
            self._call_off = Termination.call_first(partial(self.shutdown, keep_sessions=True))
            self._spawn(instance.keep_clean())
            self._spawn(self._hibernation.sleep_when_idle())
            self._retention = Retention(store, files, self.settings)
            self._spawn(self._retention.run())
            self._spawn(self.monitor.run())
            self._spawn(self.pool.run())
            self.pool.prewarm()

    async def _start_in_time(self, timeout: float | None) -> None:
        """Start within ``timeout`` seconds; a start that takes longer goes on for those who come later."""
        if self._instance is not None and self._closing is None:
            return
        starting = asyncio.create_task(self.start())
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
                f"the manager did not start within {timeout:g} s: the engine or a recovery takes longer.",
                remedy="It goes on trying; `cellblock doctor` says whether the engine answers.",
            )
        if starting.cancelled():
            self._refuse_when_closed()
        starting.result()

    @property
    def runtime(self) -> str:
        """The container runtime of new kernels: "runsc", "runc" or another that was asked for; "" before ``start``."""
        return "" if self._instance is None else self._instance.runtime

    @property
    def instance_id(self) -> str:
        """What the label ``org.cellblock.instance`` of this manager's containers says; "" before ``start``."""
        return "" if self._instance is None else self._instance.id

    @property
    def _shutdown(self) -> bool:
        return self._closing is not None and self._closing.done()

    @contextlib.asynccontextmanager
    async def acquire_kernel(
        self,
        agent_id: str,
        timeout: float | None = None,
        *,
        caller: str = "",
        group: str | None = None,
        priority: int = 0,
    ) -> AsyncIterator[tuple[Kernel, KernelSession]]:
        """Give the agent its kernel: the one that it has, with its variables, or a fresh one.

        A session that sleeps is woken in a fresh kernel, from its newest checkpoint: ``session.restored`` says what
        was lost. Leaving the context keeps the session for the agent's next call. When an earlier kernel of this agent
        has ended, ``session.previous_end`` says why.

        Args:
            timeout: seconds to wait for a free kernel, and for the engine; None waits for ever, and for the engine as
                long as CELLBLOCK_ENGINE_TIMEOUT says.
            caller: on whose behalf, for the audit log; default: this process's user and number.
            group: whose share and quota the kernel counts against (``[groups]`` in the policy); default: that of the
                agent's session, or the one of all agents without a group.
            priority: where agents of a group wait, one step goes as far as ``scheduling.aging_s`` seconds of waiting.

        Raises:
            InvalidInputError: see ``check_agent_id`` and ``check_lease_request``.
            KernelPoolExhaustedError: there was no kernel for so long, or the policy lets nobody wait; it says what is
                scarce, and how long one more would wait.
            KernelStartError, EngineError: no kernel could be started.
            CheckpointError: the session sleeps, and cannot be woken; it is asleep as before.
            StoreError: the history cannot be read or written.
            ManagerClosedError: the manager was shut down.
        """
        check_agent_id(agent_id)
        check_lease_request(group, priority)
        if timeout is not None and not timeout >= 0:
            raise InvalidInputError("the timeout must be a number of seconds, 0 or more.")
        asked = time.monotonic()
        deadline = None if timeout is None else Deadline(timeout)
        await self._start_in_time(timeout)
        caller = caller or f"uid {os.getuid()}, pid {os.getpid()}"
        with self.telemetry.span("acquire_kernel"):
            session = await self._acquiring.session_of(
                agent_id, None if deadline is None else deadline.remaining(), caller, group, priority
            )
        self.telemetry.leased(time.monotonic() - asked)
        async with self._in_use(session):
            yield session.live_kernel(), session

    async def execute_code(
        self, session: KernelSession, code: str, *, answer: InputHandler | None = None
    ) -> dict[str, Any]:
        """Run one cell and return its result: the reference's keys, and those of ``ExecutionResult`` beside them.

        An error of the code is a result with status "error"; so is a kernel that its own cell has ended.

        Args:
            answer: answers the cell's ``input()``, where the policy has ``channels.stdin``; the cell's time goes on.
                Without it, or under another policy, a cell that asks fails at once.

        Raises:
            InvalidCodeError: see ``check_code``.
            KernelTimeoutError: the cell ran past ``max_execution_time``; the error holds what it had printed.
            KernelDiedError, SessionEndedError: there is no kernel to run it.
        """
        async with contextlib.aclosing(self.stream_code(session, code, answer=answer)) as events:
            async for event in events:
                if isinstance(event, CellFinished):
                    return event.result.as_dict()
        raise AssertionError("unreachable: a stream ends with CellFinished or an error")

    async def stream_code(
        self, session: KernelSession, code: str, *, answer: InputHandler | None = None
    ) -> AsyncGenerator[Event, None]:
        """Run one cell and yield its outputs as they come; the last event is ``CellFinished`` with the result.

        A consumer that stops early interrupts the cell: close the generator (``contextlib.aclosing``), or cancel
        the task.

        Raises:
            See ``execute_code``.
        """
        check_code(code)
        finished: CellFinished | None = None
        async with self._in_use(session):
            with self.telemetry.span("execute_cell", runtime=self.runtime) as span:
                try:
                    async with contextlib.aclosing(session.run(code, self.resource_limits, answer)) as events:
                        async for event in events:
                            if isinstance(event, CellFinished):
                                finished = event
                                span.set_attribute("cellblock.outcome", event.result.outcome)
                            else:
                                yield event
                except KernelTimeoutError:
                    span.set_attribute("cellblock.outcome", "timeout")
                    raise
            await capture_if_due(session, self._registry.files, self.policy.sessions.checkpoint_every)
        assert finished is not None
        yield finished

    def interrupt(self, session: KernelSession) -> bool:
        """Raise KeyboardInterrupt in the session's running cell, as Ctrl-C does; what it makes of it is its own affair.

        A cell that ends with an error after that has the outcome "interrupted". Its kernel and variables stay.

        Returns:
            Whether a cell was running.
        """
        return session.interrupt()

    async def execute_code_for_notebook(self, session: KernelSession, code: str) -> list[NotebookNode]:
        """Run one cell and return its outputs in nbformat's form. Raises what ``execute_code`` raises."""
        return notebook.notebook_outputs(await self.execute_code(session, code))

    async def put_file(self, session: KernelSession, source: str | Path | bytes, destination: str) -> int:
        """Copy a file of the host, or bytes, into the session's sandbox, in pieces of 1 MiB. Returns its bytes.

        Args:
            destination: path inside; relative to the working directory ``/work``.

        Raises:
            FileTransferError: the source cannot be read, or it does not fit; nothing of it is left inside.
            KernelDiedError, SessionEndedError: there is no kernel.
        """
        host = source if isinstance(source, bytes) else Path(source)
        async with self._in_use(session):
            kernel = session.live_kernel()
            sent = await transfer.put_file(kernel, host, destination)
            session.note(kernel, "file.in", path=destination, bytes=sent.size, sha256=sent.sha256)
        return sent.size

    async def get_file(
        self, session: KernelSession, source: str, destination: str | Path, *, limit: int = 1024 * MIB
    ) -> int:
        """Copy a file of the session's sandbox to the host, in pieces of 1 MiB. Returns its bytes.

        Args:
            source: path inside; relative to the working directory ``/work``.
            limit: bytes that are taken at most.

        Raises:
            FileTransferError: it cannot be read or written, or exceeds the limit; no half of it is left.
            KernelDiedError, SessionEndedError: there is no kernel.
        """
        async with self._in_use(session):
            kernel = session.live_kernel()
            taken = await transfer.get_file(kernel, source, Path(destination), limit)
            session.note(kernel, "file.out", path=source, bytes=taken.size, sha256=taken.sha256)
        return taken.size

    async def end_session(self, agent_id: str, *, reason: str = "end_session") -> bool:
        """End the agent's session and discard its kernel. A cell that runs ends with outcome "kernel_died".

        Returns:
            Whether the agent had a session.

        Raises:
            KernelPoolExhaustedError: it has been on its way to its kernel, or to sleep, for a minute.
        """
        return await self._acquiring.end(agent_id, reason)

    async def checkpoint(self, session: KernelSession) -> Checkpoint:
        """Keep the session's state: variables, functions, classes, imports, files, working directory, random state.

        Waits for a running cell. What cannot be captured, such as an open file or a generator, is in ``lost``; in a
        kernel that was restored from the checkpoint, using it raises NotRestoredError. A session that has a checkpoint
        outlives this manager: the agent's next ``acquire_kernel``, in any process, wakes it.

        Raises:
            CheckpointTooLargeError, CheckpointStateError: nothing was kept; the session goes on.
            StoreError: it could not be written; nothing of it is left.
            KernelDiedError, SessionEndedError: there is no kernel.
        """
        async with self._in_use(session):
            return await capture_between_cells(session, self._registry.files, asked_for=True)

    async def restore(
        self, session: KernelSession, checkpoint: Checkpoint | str | Path, timeout: float | None = None
    ) -> Restored:
        """Give the session the state of a checkpoint, in a fresh kernel. Its history stays.

        Until the fresh kernel has loaded it, the session and its kernel are as they were.

        Args:
            checkpoint: as ``checkpoint`` returned it, its id, or the path of its file.
            timeout: seconds to wait for a free kernel; None waits a minute, since this session keeps one meanwhile.

        Raises:
            CheckpointMissingError, CheckpointDamagedError, CheckpointFormatError, CheckpointForeignError: it cannot be
                used; nothing of it was looked at.
            CheckpointStateError: the fresh kernel could not load it.
            KernelPoolExhaustedError, KernelStartError, EngineError: there is no fresh kernel.
        """
        async with self._in_use(session):
            return await self._restoring.restore(session, checkpoint, timeout)

    async def fork(
        self, session: KernelSession, count: int, *, agent_ids: Sequence[str] | None = None
    ) -> list[KernelSession]:
        """Make ``count`` independent sessions with the state of this one, for agents that search.

        They sleep, and wake at their first cell or ``acquire_kernel``: there may be more than ``max_kernels``.

        Args:
            agent_ids: whose they are; default: this agent's id with "~1", "~2", …

        Raises:
            InvalidInputError: ``count`` is below 1, or an agent id is wrong, doubled, or has a session.
            CheckpointError, StoreError, KernelDiedError: see ``checkpoint``; no session was made.
        """
        if count < 1 or (agent_ids is not None and len(agent_ids) != count):
            raise InvalidInputError("count must be 1 or more, and agent_ids as many.")
        async with self._in_use(session):
            return await self._forking.fork(session, count, agent_ids)

    async def hibernate(self, agent_id: str) -> bool:
        """Let the agent's session sleep now: checkpoint it, and give its kernel up.

        Returns:
            Whether it sleeps. Not when it is in use, or the policy keeps what no checkpoint can hold.
        """
        session = self.sessions.get(agent_id)
        return session is not None and await self._hibernation.hibernate(session, "hibernate")

    def save_checkpoint(self, session: KernelSession, file_path: str | Path | None = None) -> dict[str, Any]:
        """See ``checkpoint.save_checkpoint``."""
        return checkpoints.save_checkpoint(session, file_path)

    def restore_checkpoint(
        self,
        session: KernelSession,
        checkpoint_data: dict[str, Any] | None = None,
        file_path: str | Path | None = None,
    ) -> None:
        """See ``checkpoint.restore_checkpoint``."""
        checkpoints.restore_checkpoint(session, checkpoint_data, file_path)

    def save_session_as_notebook(self, session: KernelSession, output_path: str | Path, title: str = "") -> None:
        """Write the session's cells and outputs as a notebook.

        Raises:
            StoreError: it cannot be written.
        """
        notebook.save_notebook(session, Path(output_path), title or f"Session of {session.agent_id}")

    async def get_kernel_resource_usage(self, kernel_id: str) -> dict[str, Any]:
        """Measure a kernel.

        Returns:
            "memory_mb" (page cache left out), "memory_limit_mb", "peak_memory_mb", "rss_mb", "tmpfs_mb", "cpu_percent"
            (of one core, since the last sample), "cpu_limit_percent", "cpu_seconds" (since its start), "pids" and
            "oom_kills". See ``Usage`` for what each means under either runtime.

        Raises:
            InvalidInputError: the manager has no such kernel.
            EngineError: the host's cgroups cannot be read, and the engine does not answer.
        """
        resource = self.pool.kernels.get(kernel_id)
        if resource is None or resource.kernel is None:
            raise InvalidInputError(f"there is no kernel {kernel_id!r}.")
        sample = await self.monitor.sample(resource.kernel)
        return {"kernel_id": kernel_id, **sample.as_dict(self.resource_limits)}

    async def sweep_everywhere(self) -> int:
        """Remove also the running kernels of dead processes with other folders. Returns how many.

        Raises:
            EngineError: the engine does not answer.
            See ``start``.
        """
        await self.start()
        assert self._instance is not None
        return await self._instance.sweep(everywhere=True)

    async def apply_retention(self) -> int:
        """Delete now the sessions that are too old or too much, as is done every hour. Returns how many.

        Raises:
            StoreError: the history cannot be read or written.
            See ``start``.
        """
        await self.start()
        assert self._retention is not None
        return await asyncio.to_thread(self._retention.sweep)

    async def shutdown(self, *, keep_sessions: bool = False) -> None:
        """End all sessions and kernels and remove all that is left of them. A cancelled shutdown still finishes.

        A session that has a checkpoint is checkpointed once more, and wakes at its agent's next ``acquire_kernel``, in
        whatever process.

        Args:
            keep_sessions: every session is kept so. A running cell has 5 s to end, and is interrupted then. A kernel
                whose state cannot be written runs on, as after a kill, and the next start goes on with it.

        Raises:
            EngineError: the engine does not answer; what is left is removed by the next start on this host.
        """
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
        self._closing.result()

    async def _close(self, keep_sessions: bool) -> None:
        await self._cancel_tasks()
        async with self._opening:
            await self._cancel_tasks()
            sessions = list(self.sessions.values())
            await self._hibernation.close(keep=keep_sessions)
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
                self._call_off()

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def overview(self) -> dict[str, Any]:
        """What `cellblock ps` shows: the instance, its pool, and each kernel with its agent, cell and usage."""
        return self._operations.overview()

    def _describe(self) -> dict[str, Any]:
        return {
            "instance": self.instance_id,
            "pid": os.getpid(),
            "runtime": self.runtime,
            "policy": self.settings.policy,
        }

    def _make_pool(self) -> KernelPool:
        policy, warm = self.policy, self.settings.warm_kernels
        host = HostLoad(self._memory_of_kernels)
        admission = Admission(self.resource_limits, policy.scheduling)
        return KernelPool(
            self.max_kernels,
            start=self._start_kernel,
            warm=policy.pool.warm if warm is None else warm,
            rules=policy.pool,
            scheduler=Scheduler(policy.scheduling, policy.groups),
            room=lambda kernels, starting: admission.room(host.read(), kernels, starting),
            telemetry=self.telemetry,
        )

    def _memory_of_kernels(self) -> int:
        """Bytes that the pool's kernels used when they were sampled last."""
        latest = self.monitor.latest
        return sum(latest[kernel_id].usage.memory for kernel_id in self.pool.kernels if kernel_id in latest)

    def _live_kernels(self) -> list[Kernel]:
        kernels = (resource.kernel for resource in self.pool.kernels.values())
        return [kernel for kernel in kernels if kernel is not None and kernel.is_alive]

    async def _start_kernel(self) -> Kernel:
        assert self._instance is not None
        return await self._instance.start_kernel()

    def _open_store(self) -> tuple[History, CheckpointFiles]:
        history = History.open(self.settings.history_url, self.settings.data_path)
        try:
            return history, CheckpointFiles(self.settings.data_path)
        except BaseException:
            history.close()
            raise

    @contextlib.asynccontextmanager
    async def _in_use(self, session: KernelSession) -> AsyncIterator[None]:
        """Keep a session awake, having woken it, whether or not its agent is inside ``acquire_kernel``."""
        try:
            with session.in_use():
                await self._registry.reap_if_dead(session)
                if session.asleep and session.ended is None:
                    self._refuse_when_closed()
                    request = session.lease_request
                    await self._acquiring.session_of(
                        session.agent_id, None, session.caller, request.group, request.priority
                    )
                yield
        finally:
            self._hibernation.make_room()

    def _refuse_when_closed(self) -> None:
        if self._closing is not None:
            raise ManagerClosedError("the manager has been shut down.", remedy="Make a new one.")

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_report)


def _report_late_start(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("the manager could not start: %s", error)


def _report(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a background task of the manager failed", exc_info=error)
