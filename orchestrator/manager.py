"""AgentKernelManager: the public facade. ``wiring`` makes its parts, starts and closes them.

Use it from one event loop. ``cellblock.sync`` has a synchronous form.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from orchestrator.broker.leasedkernel import LeasedKernel
from orchestrator.cellcalls import CellCalls
from orchestrator.commandcalls import CommandCalls
from orchestrator.container.folders import broker_folder
from orchestrator.errors import CellblockError, InvalidInputError, SettingsError, UnknownKernelNameError
from orchestrator.filecalls import FileCalls
from orchestrator.inputs import check_agent_id, check_lease_request
from orchestrator.limits import Deadline, KernelResourceLimits
from orchestrator.policy.policy import Policy
from orchestrator.sessions import checkpoint as checkpoints
from orchestrator.sessions.checkpoint import Checkpoint, capture_between_cells
from orchestrator.sessions.installing import install
from orchestrator.sessions.membership import Membership
from orchestrator.sessions.recovery import Recovery
from orchestrator.sessions.restored import Restored
from orchestrator.sessions.session import KernelSession
from orchestrator.sessions.startedcells import StartedCells
from orchestrator.settings import Settings
from orchestrator.store.history import History
from orchestrator.store.noderecord import Capacity
from orchestrator.tool import Tool, ToolFunction, tools_by_name
from orchestrator.wiring.lifespan import Lifespan
from orchestrator.wiring.parts import Parts

if TYPE_CHECKING:
    from orchestrator.remote.remotemanager import RemoteKernelManager

KERNEL_NAMES = ("python3",)


class AgentKernelManager(CellCalls, CommandCalls, FileCalls):
    """Gives every agent a kernel of its own, in a locked container of its own.

    A manager belongs to the event loop in which it starts. Elsewhere every call raises WrongEventLoopError at once, and
    nothing changes. After ``shutdown`` has begun, calls raise ManagerClosedError.

    Use it as an async context manager, or call ``await shutdown()`` at the end. The first ``acquire_kernel`` starts a
    manager that was not entered. In a program that does not handle SIGTERM, ``shutdown(keep_sessions=True)`` runs
    before SIGTERM ends the process.

    Args:
        max_kernels: how many containers may exist at the same time, warm ones included.
        kernel_name: "python3".
        resource_limits: of every kernel; None: those of the policy.
        settings: None: from CELLBLOCK_* variables and ``.env``.
        policy: None: the one that the settings name.
        keep_sessions: what leaving the context, and ``shutdown()`` without an argument, do with the sessions. False:
            end those that never had a checkpoint. True: keep all; each agent's next ``acquire_kernel``, in any process
            with the same data folder, continues its session.
        membership: the node of a cluster whose manager this is; `cellblock serve` makes it. None: of no cluster.

    Attributes:
        pool: the kernels.
        monitor: the resource usage of the kernels.
        telemetry: metrics and spans. Serve ``telemetry.registry`` from an endpoint of your program.
        sessions: the live sessions, by agent id.
        resource_limits: the limits in force.

    Raises:
        ValueError: ``max_kernels`` is below 1.
        UnknownKernelNameError: the sandbox image has no kernel of this name.
        SettingsError: a CELLBLOCK_* variable cannot be used.
        PolicyError: the policy cannot be used.
    """

    def __init__(
        self,
        max_kernels: int = 10,
        kernel_name: str = "python3",
        resource_limits: KernelResourceLimits | None = None,
        *,
        settings: Settings | None = None,
        policy: Policy | None = None,
        keep_sessions: bool = False,
        membership: Membership | None = None,
    ) -> None:
        if kernel_name not in KERNEL_NAMES:
            raise UnknownKernelNameError(
                f"the sandbox image has no kernel {kernel_name!r}.", remedy=f"It has: {', '.join(KERNEL_NAMES)}."
            )
        self.settings = settings or Settings.load()
        self.policy = policy or Policy.load(self.settings.policy)
        self.max_kernels = max_kernels
        self.kernel_name = kernel_name
        self.keep_sessions = keep_sessions
        self.resource_limits = resource_limits or self.policy.resource_limits()
        self._parts = Parts(max_kernels, self.settings, self.policy, self.resource_limits)
        self._life = Lifespan(self._parts, self.settings, self.policy, self.resource_limits, membership)
        self.telemetry = self._parts.telemetry
        self.monitor = self._parts.monitor
        self.pool = self._parts.pool
        self.sessions = self._parts.registry.sessions
        self._started = StartedCells(self.resource_limits.max_output_bytes)

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        token: str | None = None,
        uds: str | Path | None = None,
        verify: str | bool = True,
        policy: str = "",
    ) -> RemoteKernelManager:
        """Return the manager of a server, ``cellblock serve``: the same calls, types and errors.

        It connects with its first call. Use it as an async context manager; needs the extra ``client``.

        Args:
            url: such as "http://127.0.0.1:8730".
            token: of `cellblock token create`; None: the server needs none.
            uds: the path of the server's unix socket, in place of the address in ``url``.
            verify: for HTTPS: the file of a certificate authority; True: the system's authorities.
            policy: of new sessions; "": the token's first.

        Raises:
            SettingsError: the extra is not installed.
        """
        try:
            from orchestrator.remote.remotemanager import RemoteKernelManager
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"a client of a server needs {error.name}.", remedy="pip install 'cellblock[client]'"
            ) from error
        return RemoteKernelManager(
            url, token=token, uds=None if uds is None else str(uds), verify=verify, policy=policy
        )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def start(self) -> None:
        """Connect to the engine, take over the sessions of dead processes and begin to warm kernels. Idempotent.

        Waits up to 10 s until the kernels of dead processes are adopted, moved or ended. What takes longer, such as a
        kernel that does not answer, continues beside other calls: only the agent of that session waits for it.
        ``acquire_kernel`` on a manager that was not entered waits for no kernel but its own agent's.

        Raises:
            ManagerClosedError: the manager was shut down.
            EngineUnavailableError, EnginePermissionError, ImageMissingError, UnknownRuntimeError, SettingsError:
                kernels cannot be started here; the message says what to do.
            StoreError: the history cannot be read or written.
        """
        await self._life.start()

    @property
    def instance_id(self) -> str:
        """The label ``org.cellblock.instance`` of this manager's containers; "" before ``start``."""
        return self._parts.instance_id

    def capacity(self) -> Capacity:
        """Return what the manager has to give to new sessions now. It is no promise."""
        return self._parts.capacity()

    @property
    def recovery(self) -> Recovery:
        """What this manager took over from dead processes when it started; empty before ``start``."""
        return self._life.recovery

    @contextlib.asynccontextmanager
    async def acquire_kernel(
        self,
        agent_id: str,
        timeout: float | None = None,
        *,
        caller: str = "",
        group: str | None = None,
        priority: int = 0,
        handover: bool = False,
        tools: Iterable[Tool | ToolFunction] | None = None,
    ) -> AsyncIterator[tuple[LeasedKernel, KernelSession]]:
        """Yield the agent's kernel and session: those that it has, with its variables, or new ones.

        The kernel is an ``AsyncKernelManager`` of jupyter_client: its ``client()`` is a stock client.

        A session that sleeps wakes in a fresh kernel, from its newest checkpoint: ``session.restored`` says what was
        lost. Leaving the context keeps the session for the agent's next call. If an earlier kernel of this agent has
        ended, ``session.previous_end`` says why.

        Args:
            timeout: seconds to wait for a free kernel and for the engine; None: without a limit for a kernel, and up
                to CELLBLOCK_ENGINE_TIMEOUT for each call to the engine.
            caller: who uses the kernel, for the audit log; default: this process's user id and process id.
            group: the group whose share and quota the kernel counts against (``[groups]`` in the policy); default: the
                group of the agent's session, or the group of all agents without one.
            priority: the place in the queue of the group; one step is worth ``scheduling.aging_s`` seconds of waiting.
            handover: if another live process owns the agent's session and no call uses it there, have that process
                checkpoint it and hand it over.
            tools: functions of this program that the session's cells may call while the context is open: plain or
                asynchronous functions, described by their signature and docstring, or ``Tool`` objects. In a cell:
                ``import tools; tools.NAME(…)``, or ``await tools.NAME.async_(…)``. None: those that are offered
                already.

        Raises:
            InvalidInputError: see ``check_agent_id``, ``check_lease_request`` and ``Tool``.
            KernelPoolExhaustedError: no kernel became free within ``timeout``, or the policy refuses callers that would
                wait. The error says what is scarce, and estimates the wait.
            KernelStartError, EngineError: no kernel could be started.
            CheckpointError: the session sleeps and cannot be woken; it sleeps as before.
            SessionElsewhereError: another live process owns the agent's session; the error names it.
            SessionBusyError: another call wakes the session, or puts it to sleep, for longer than ``timeout``.
            StoreError: the history cannot be read or written.
            ManagerClosedError: the manager was shut down.
        """
        check_agent_id(agent_id)
        check_lease_request(group, priority)
        offered = None if tools is None else tools_by_name(tools)
        if timeout is not None and not timeout >= 0:
            raise InvalidInputError("the timeout must be a number of seconds, 0 or more.")
        asked = time.monotonic()
        deadline = None if timeout is None else Deadline(timeout)
        await self._life.start_in_time(timeout)
        caller = caller or f"uid {os.getuid()}, pid {os.getpid()}"
        with self.telemetry.span("acquire_kernel"), self._life.or_closed(CellblockError):
            session = await self._parts.acquiring.session_of(
                agent_id,
                None if deadline is None else deadline.remaining(),
                caller,
                group,
                priority,
                handover=handover,
            )
        self.telemetry.leased(time.monotonic() - asked)
        sockets = broker_folder(self._parts.live_instance().folder, secrets.token_hex(4))
        async with self._life.in_use(session):
            kernel = LeasedKernel(self, session, sockets)
            try:
                with session.offering(offered):
                    yield kernel, session
            finally:
                await kernel.close()

    async def restart_kernel(
        self, session: KernelSession, *, keep_files: bool = True, timeout: float | None = None
    ) -> None:
        """Give the session a fresh kernel, without its variables. A running cell and commands end.

        Args:
            keep_files: whether the files of ``/work`` move to the fresh kernel.
            timeout: seconds to wait for a free kernel; None: 60.

        Raises:
            FileTransferError: the files could not be read. The session keeps its kernel.
            KernelPoolExhaustedError, KernelStartError, EngineError: there is no fresh kernel. The session has ended, or
                sleeps with its last checkpoint.
            KernelDiedError, SessionEndedError: there is no kernel.
        """
        async with self._life.in_use(session):
            await self._parts.restoring.restart(session, keep_files=keep_files, timeout=timeout)

    async def install(self, session: KernelSession, requirements: Sequence[str]) -> list[str]:
        """Install packages that the policy allows, while the session runs. Cells import them at once.

        The host's pip resolves wheels, checks their hashes and keeps them; the sandbox unpacks them. They are there
        again after hibernation, a restore and in forks. ``%pip install`` and ``!pip install`` in a cell do the same.

        Args:
            requirements: such as "emoji", "emoji==2.14", or "emoji==2.14 --hash=sha256:…".

        Returns:
            The names and versions of what was installed; packages of the image are not among them.

        Raises:
            PackageError: one is not allowed, has no wheel, ...; see its ``reason``. Nothing was installed.
            KernelDiedError, SessionEndedError: there is no kernel.
        """
        async with self._life.in_use(session):
            source = session.package_source
            assert source is not None
            resolved = await install(session, session.live_kernel(), source, requirements)
        return [wheel.title for wheel in resolved.wheels]

    async def list_sessions(self, *, ended: bool = False) -> list[dict[str, Any]]:
        """Return the newest 1,000 sessions of this host's data folder, the last used first, of all its processes.

        Args:
            ended: also those that have ended.

        Raises:
            StoreError: the history cannot be read.
            See ``start``.
        """
        await self.start()
        store = self._parts.registry.store
        return [record.as_dict() for record in await store.run(History.sessions_here, ended=ended, limit=1000)]

    async def end_session(self, agent_id: str, *, reason: str = "end_session") -> bool:
        """End the agent's session and discard its kernel. A running cell ends with outcome "kernel_died".

        Returns:
            Whether the agent had a session.

        Raises:
            SessionBusyError: another call has been waking the session, or putting it to sleep, for a minute.
        """
        self._life.check_caller()
        return await self._parts.acquiring.end(agent_id, reason)

    async def checkpoint(self, session: KernelSession) -> Checkpoint:
        """Save the session's state: variables, functions, classes, imports, files, working directory, random state.

        Waits for a running cell. What cannot be captured, such as an open file or a generator, is in ``lost``; using it
        after a restore raises NotRestoredError in the cell. A session that has a checkpoint outlives this manager: the
        agent's next ``acquire_kernel``, in any process, wakes it.

        Raises:
            CheckpointTooLargeError, CheckpointStateError: the state cannot be saved; the session is unchanged.
            StoreError: the checkpoint cannot be written; the session is unchanged.
            QuotaExceededError: the agent keeps as much as it may; the session is unchanged.
            KernelDiedError, SessionEndedError: there is no kernel.
        """
        async with self._life.in_use(session):
            return await capture_between_cells(session, self._parts.registry.files, asked_for=True)

    async def restore(
        self, session: KernelSession, checkpoint: Checkpoint | str | Path, timeout: float | None = None
    ) -> Restored:
        """Load a checkpoint into a fresh kernel, and give that kernel to the session. Its history stays.

        The session keeps its kernel until the fresh one has loaded the checkpoint.

        Args:
            checkpoint: what ``checkpoint`` returned, its id, or the path of its file.
            timeout: seconds to wait for a free kernel; None: 60, because the session holds a kernel meanwhile.

        Raises:
            CheckpointMissingError, CheckpointDamagedError, CheckpointFormatError, CheckpointForeignError: the
                checkpoint cannot be used; the kernel has received none of it.
            CheckpointStateError: the fresh kernel could not load it.
            KernelPoolExhaustedError, KernelStartError, EngineError: there is no fresh kernel.
        """
        async with self._life.in_use(session):
            return await self._parts.restoring.restore(session, checkpoint, timeout)

    async def fork(
        self, session: KernelSession, count: int, *, agent_ids: Sequence[str] | None = None
    ) -> list[KernelSession]:
        """Make ``count`` independent sessions with the state of this one, for agents that search.

        The new sessions sleep until their first cell or ``acquire_kernel``, so ``count`` may exceed ``max_kernels``.

        Args:
            agent_ids: their agents; default: this agent's id with "~1", "~2", …

        Raises:
            InvalidInputError: ``count`` is below 1, or an agent id is invalid, occurs twice, or has a session.
            CheckpointError, StoreError, KernelDiedError: see ``checkpoint``; no session was made.
        """
        if count < 1 or (agent_ids is not None and len(agent_ids) != count):
            raise InvalidInputError("count must be 1 or more, and agent_ids must have count entries.")
        async with self._life.in_use(session):
            return await self._parts.forking.fork(session, count, agent_ids)

    async def hibernate(self, agent_id: str) -> bool:
        """Checkpoint the agent's session and give its kernel up.

        Returns:
            Whether the session sleeps now. False if it is in use, or if its checkpoint would lose something and the
            policy forbids that.
        """
        self._life.check_caller()
        session = self.sessions.get(agent_id)
        return session is not None and await self._parts.hibernation.hibernate(session, "hibernate")

    async def drain(self, timeout: float) -> dict[str, str]:
        """Take no more sessions, and hibernate those that are here as their calls end, so that another host has them.

        Args:
            timeout: seconds after which the sessions that are still here stay. They go on; others are refused with
                KernelPoolExhaustedError, whose reason is "draining".

        Returns:
            Why each session that is still here has stayed, by its id.
        """
        self._life.check_caller()
        return await self._parts.hibernation.drain(timeout)

    def undrain(self) -> None:
        """Take sessions again after ``drain``, which ends if it still runs. Idempotent."""
        self._life.check_caller()
        self._parts.hibernation.undrain()

    async def export_history(self, session: KernelSession, file_path: str | Path | None = None) -> dict[str, Any]:
        """Return the session's identity and history; with ``file_path``, also write both to that file, as JSON.

        It holds no variables: see ``checkpoint`` for those.

        Raises:
            StoreError: the file cannot be written, or the history cannot be read. An existing file is unchanged.
        """
        self._life.check_loop()
        return await checkpoints.export_history(session, file_path)

    async def import_history(
        self,
        session: KernelSession,
        checkpoint_data: dict[str, Any] | None = None,
        file_path: str | Path | None = None,
    ) -> None:
        """Replace the session's history with what ``export_history`` returned or wrote. Its kernel is unchanged.

        Raises:
            InvalidInputError: neither or both sources were given, or the data is not a checkpoint. The session is
                unchanged.
            OSError: the file cannot be read.
        """
        self._life.check_loop()
        await checkpoints.import_history(session, checkpoint_data, file_path)

    async def export_notebook(self, session: KernelSession, output_path: str | Path, title: str = "") -> None:
        """Write the session's cells and outputs as a notebook.

        Raises:
            StoreError: the file cannot be written, or the history cannot be read. An existing file is unchanged.
        """
        from orchestrator.sessions import notebook  # imports nbformat, which most processes do not need

        self._life.check_loop()
        await notebook.export_notebook(session, Path(output_path), title or _title(session))

    def save_checkpoint(self, session: KernelSession, file_path: str | Path | None = None) -> dict[str, Any]:
        """Do what ``export_history`` does, but block the event loop: the reference's interface is synchronous."""
        return checkpoints.save_checkpoint(session, file_path)

    def restore_checkpoint(
        self,
        session: KernelSession,
        checkpoint_data: dict[str, Any] | None = None,
        file_path: str | Path | None = None,
    ) -> None:
        """Do what ``import_history`` does, but block the event loop: the reference's interface is synchronous."""
        checkpoints.restore_checkpoint(session, checkpoint_data, file_path)

    def save_session_as_notebook(self, session: KernelSession, output_path: str | Path, title: str = "") -> None:
        """Do what ``export_notebook`` does, but block the event loop: the reference's interface is synchronous."""
        from orchestrator.sessions import notebook

        notebook.save_notebook(session, Path(output_path), title or _title(session))

    async def get_kernel_resource_usage(self, kernel_id: str) -> dict[str, Any]:
        """Measure a kernel.

        Returns:
            "memory_mb" (without page cache), "memory_limit_mb", "peak_memory_mb", "rss_mb", "tmpfs_mb", "cpu_percent"
            (of one core, since the last sample), "cpu_limit_percent", "cpu_seconds" (since its start), "pids" and
            "oom_kills". See ``Usage`` for what each means under either runtime.

        Raises:
            InvalidInputError: the manager has no such kernel.
            EngineError: the host's cgroups cannot be read, and the engine does not answer.
        """
        self._life.check_caller()
        resource = self.pool.kernels.get(kernel_id)
        if resource is None or resource.kernel is None:
            raise InvalidInputError(f"there is no kernel {kernel_id!r}.")
        sample = await self.monitor.sample(resource.kernel)
        return {"kernel_id": kernel_id, **sample.as_dict(self.resource_limits)}

    async def sweep_everywhere(self) -> int:
        """Remove also the running kernels of dead processes with other folders. Return how many were removed.

        Raises:
            EngineError: the engine does not answer.
            See ``start``.
        """
        await self.start()
        await self._life.recovered()
        return await self._parts.live_instance().sweep(everywhere=True)

    async def apply_retention(self) -> int:
        """Delete the sessions that are too old or too many now, not at the next full hour. Return how many.

        Raises:
            StoreError: the history cannot be read or written.
            See ``start``.
        """
        await self.start()
        return await asyncio.to_thread(self._life.live_retention().sweep)

    async def shutdown(self, *, keep_sessions: bool | None = None) -> None:
        """End all sessions and kernels, and remove their containers and folders. Idempotent.

        A session that has a checkpoint is checkpointed once more, and continues at its agent's next
        ``acquire_kernel``, in any process. A shutdown that is cancelled still finishes before it raises.

        Args:
            keep_sessions: keep every session in this way; None: as the manager was made. A running cell has 5 s to
                end and is then interrupted. A kernel whose state cannot be written runs on, and the next start adopts
                it.

        Raises:
            EngineError: the engine does not answer; the next start on this host removes what is left.
        """
        await self._life.close(keep_sessions=self.keep_sessions if keep_sessions is None else keep_sessions)

    def note_operator(self, action: str, operator: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        """Add an operator's action to the audit log, also one on a session without a kernel.

        Args:
            action: such as "kill"; the event is "operator.kill".
            operator: who did it, as JSON.
            target: what it was done to, such as ``{"session": ID}``, as JSON.
        """
        self._life.check_caller()
        self._parts.live_instance().note(f"operator.{action}", operator=dict(operator), **target)

    def overview(self) -> dict[str, Any]:
        """Return what `cellblock ps` shows: the instance, its pool, and each kernel with its agent, cell and usage."""
        return self._parts.operations.overview()


def _title(session: KernelSession) -> str:
    return f"Session of {session.agent_id}"
