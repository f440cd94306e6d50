"""A process's sessions without an engine: a real SQLite store and checkpoint files, and kernels in memory."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import select

from orchestrator.container.exits import Exit
from orchestrator.container.reaper import Leftover
from orchestrator.errors import CellblockError, StoreError
from orchestrator.kernel.fakekernel import FakeKernel
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import KernelResourceLimits
from orchestrator.outcome import Outcome
from orchestrator.output.events import CellFinished, ExecutionResult
from orchestrator.policy.policy import Policy
from orchestrator.policy.sections import Group, Sessions
from orchestrator.pool.kernelpool import KernelPool
from orchestrator.pool.scheduler import Scheduler
from orchestrator.sessions.acquiring import Acquiring
from orchestrator.sessions.checkpoint import Checkpoint, capture_between_cells
from orchestrator.sessions.clusterquotas import ClusterQuotas
from orchestrator.sessions.elsewhere import hand_over
from orchestrator.sessions.forking import Forking
from orchestrator.sessions.hibernation import Hibernation
from orchestrator.sessions.recovery import Recovery, recover
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.restored import Restored
from orchestrator.sessions.restoring import Restoring
from orchestrator.sessions.session import KernelSession
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import Claim, History, SessionRecord
from orchestrator.store.schema import sessions

P = ParamSpec("P")
T = TypeVar("T")
_NUMBERS = itertools.count(1)


class FaultyHistory(History):
    """A store that ignores, or refuses, the writes that a test names.

    Attributes:
        deaf_to: methods that do nothing and report success.
        refuses: methods that raise StoreError.
    """

    deaf_to: tuple[object, ...] = ()
    refuses: tuple[object, ...] = ()

    async def run(self, method: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        if method in self.refuses:
            raise StoreError("the disk is full.")
        if method in self.deaf_to:  # ``take_ownership`` returns a claim, of which the others return nothing
            return await super().run(_claim_now, str(args[0]))  # type: ignore[arg-type]
        return await super().run(method, *args, **kwargs)

    def submit(self, method: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs) -> None:
        if method not in self.deaf_to:
            super().submit(method, *args, **kwargs)


def _claim_now(store: History, session_id: str) -> Claim:
    """Return a claim that the store accepts, although another process may own the session."""
    with store._database.reading() as connection:
        return Claim(
            session_id, connection.scalar(select(sessions.c.fence).where(sessions.c.session_id == session_id)) or 0
        )


class Inheritance:
    """The kernels that dead processes left.

    Attributes:
        left: the kernels that live, by id.
        others: ids of kernels that belong to another process.
        adopted: the kernels that were adopted.
        failure: what ``adopt`` raises.
        dies: whether a kernel dies as it is adopted.
        refusal: why adopted kernels cannot save their state.
        alike: whether a kernel started now would have the same configuration.
        sweep_failure: what ``sweep`` raises.
    """

    def __init__(self, left: Collection[str] = (), others: Collection[str] = ()) -> None:
        self.left = set(left)
        self.others = set(others)
        self.adopted: dict[str, FakeKernel] = {}
        self.failure: CellblockError | None = None
        self.dies = False
        self.refusal = ""
        self.alike = True
        self.sweep_failure: CellblockError | None = None

    async def inherit(self, kernel_ids: Collection[str]) -> tuple[list[Leftover], set[str]]:
        return [Leftover(kernel_id, "dead", 1, "") for kernel_id in self.left & set(kernel_ids)], self.others

    async def adopt(self, left: Leftover) -> Kernel:
        if self.failure is not None:
            raise self.failure
        kernel = self.adopted[left.kernel_id] = FakeKernel(left.kernel_id)
        kernel.state.refusal = self.refusal
        if self.dies:
            kernel.die()
        return kernel

    def would_start_alike(self, left: Leftover) -> bool:
        return self.alike

    async def sweep(self) -> int:
        if self.sweep_failure is not None:
            raise self.sweep_failure
        return 3


class Owners:
    """Processes of which a test says which ones are dead."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead: set[str] = set()
        self.may_leave_kernels = False

    def is_dead(self, name: str) -> bool:
        return name in self.dead

    def holder(self, name: str) -> tuple[int | None, str | None]:
        return 1, name


class World:
    """One process: its sessions, its pool, and the store that it shares with those before and after it.

    Attributes:
        kernels: every kernel that the pool started, by id.
        next_kernel: called with each kernel when it starts.
        inheritance: the kernels of dead processes that it finds when one of their agents comes.
        others: the live processes that it can ask for a handover, by name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "me",
        max_kernels: int = 4,
        sessions: Sessions | None = None,
        idle_s: float = 300.0,
        is_open: bool = True,
        groups: dict[str, Group] | None = None,
        agent_quota: int | None = None,
    ) -> None:
        self.folder = folder
        self.owners = Owners(name)
        self.policy = Policy(sessions=sessions or Sessions(), groups=groups or {})
        self.limits = KernelResourceLimits(idle_timeout_seconds=idle_s)
        self.kernels: dict[str, FakeKernel] = {}
        self.next_kernel: Callable[[FakeKernel], None] = lambda _kernel: None
        self.tasks: set[asyncio.Task[None]] = set()
        scheduler = Scheduler(self.policy.scheduling, self.policy.groups)
        self.pool = KernelPool(max_kernels, start=self._start, refill_delay=0.0, scheduler=scheduler)
        self.store = FaultyHistory.open(f"sqlite:///{folder}/history.db", folder, agent_quota=agent_quota)
        self.files = CheckpointFiles(folder)
        self.registry = SessionRegistry(self.pool, self.policy, self._spawn)
        self.hibernation = Hibernation(self.registry, self.pool, self.limits, self.policy, self._spawn)
        self.acquiring = Acquiring(
            self.registry, self.hibernation, self.pool, ClusterQuotas(self.registry, self.policy, "default")
        )
        self.restoring = Restoring(self.registry, self.acquiring, self.hibernation, self.pool)
        self.forking = Forking(self.registry)
        self.inheritance = Inheritance()
        self.others: dict[str, World] = {}
        if is_open:
            self.registry.open(self.store, self.files, name)
            disown, soon = self.registry.disown, asyncio.get_running_loop().call_soon_threadsafe
            self.store.on_refused(lambda error: soon(disown, error.session_id))
            self.acquiring.elsewhere.open(self.owners, lambda: self.recover(self.inheritance), self._ask)

    async def acquire(self, agent: str, timeout: float | None = 5.0, **options: Any) -> KernelSession:
        return await self.acquiring.session_of(agent, timeout, "tester", **options)

    async def run(self, session: KernelSession, code: str = "1") -> ExecutionResult:
        result: ExecutionResult | None = None
        async for event in session.run(code, self.limits):
            if isinstance(event, CellFinished):
                result = event.result
        assert result is not None
        return result

    async def checkpoint(self, session: KernelSession) -> Checkpoint:
        return await capture_between_cells(session, self.files, asked_for=True)

    async def restore(self, session: KernelSession, checkpoint: Checkpoint) -> Restored:
        return await self.restoring.restore(session, checkpoint, 5.0)

    async def recover(self, inheritance: Inheritance) -> Recovery:
        return await recover(self.registry, self.pool, inheritance, self.owners)

    def kernel_of(self, session: KernelSession) -> FakeKernel:
        assert isinstance(session.kernel, FakeKernel)
        return session.kernel

    async def die(self, session: KernelSession, exit: Exit | None = None) -> None:
        """End the session's kernel, and wait until it is reaped."""
        self.kernel_of(session).die(exit or Exit(Outcome.KERNEL_DIED, 1))
        await self.quiet()

    async def quiet(self) -> None:
        """Wait until no background work is left."""
        while self.tasks:
            await asyncio.gather(*self.tasks)

    async def row(self, session_id: str) -> SessionRecord | None:
        """Return a session's row, once everything that was asked of the store is done."""
        found = await self.store.run(History.find, session_id)
        return found[0] if found else None

    async def crash(self) -> None:
        """End as a killed process does: write nothing more."""
        self.registry.closed = True
        await asyncio.to_thread(self.store.close)

    async def close(self, *, keep: bool = False) -> None:
        await self.hibernation.close(keep=keep)
        await self.pool.close()
        await self.quiet()
        await asyncio.to_thread(self.store.close)

    async def _ask(self, instance: str, request: dict[str, Any], _timeout: float) -> dict[str, Any] | None:
        other = self.others.get(instance)
        return None if other is None else await hand_over(other.registry, request["agent"])

    async def _start(self) -> Kernel:
        await asyncio.sleep(0)
        kernel = FakeKernel(f"kernel-{next(_NUMBERS)}")
        kernel.state.data = b"state"
        self.kernels[kernel.kernel_id] = kernel
        self.next_kernel(kernel)
        return kernel

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
