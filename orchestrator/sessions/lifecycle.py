"""Lifecycle: a session's state, and the transitions that change it together with its row in the store.

```mermaid
stateDiagram-v2
    [*] --> new
    new --> live: begin
    new --> ended: begin (its row cannot be written)
    [*] --> asleep: fork, of_record
    asleep --> live: wake (from a checkpoint), restart (empty), adopt (the kernel of a dead process)
    live --> live: move (to another kernel)
    live --> asleep: sleep, abandon
    asleep --> asleep: take_over (of a dead process)
    asleep --> ended: end
    live --> ended: end, disown (another process has taken it over)
```

A transition changes the session's fields *and* its row in the store; no other module assigns either.
- Transitions to a kernel (``begin``, ``wake``, ``move``) write the row first. If that fails, the session is as it was.
- Transitions away from it (``sleep``, ``end``) change the fields first and always succeed. The store keeps a row
  that it cannot write, and writes it before anything else.
- ``abandon`` leaves the row "live": the next process finds that its owner is dead, takes it over and adopts the kernel.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from orchestrator.errors import CheckpointError, ManagerClosedError, SessionBusyError, SessionEndedError
from orchestrator.homeloop import HomeLoop
from orchestrator.image.packages import PackageSource
from orchestrator.image.resolver import Wheel
from orchestrator.kernel.commands import stop_all_commands
from orchestrator.kernel.kernel import Kernel
from orchestrator.outcome import Outcome, kernel_end
from orchestrator.policy.policy import Policy
from orchestrator.pool.scheduler import LeaseRequest
from orchestrator.sessions.restored import Restored, is_loss, loss_notice
from orchestrator.sessions.sessionrow import SessionRow
from orchestrator.store.history import CheckpointRecord, History, SessionRecord, SessionState
from orchestrator.store.places import Place

_FILES_NOTED = 1000
_COMMANDS_NAMED = 5


def commands_text(commands: Sequence[str]) -> str:
    """Return how many commands there are, and the first of them, for a notice."""
    more = f", and {len(commands) - _COMMANDS_NAMED} more" if len(commands) > _COMMANDS_NAMED else ""
    return f"{len(commands)} commands ({', '.join(commands[:_COMMANDS_NAMED])}{more})"


@dataclass(eq=False)
class Lifecycle:
    """What a session is, and where it stands. Read the fields; only the transitions assign them.

    Attributes:
        kernel_id: the id of its kernel, or of its last one.
        created_at, last_used_at, last_checkpoint: seconds since the epoch, for display only.
        execution_history: one ``{"timestamp", "code", "result"}`` per cell, in order. An entry is made before its cell
            runs, with ``result["status"] == "running"``, and closed afterwards: a crash leaves evidence of it. The
            first access after a cell or a wake reads the store and blocks; ``await session.history()`` does not block.
        cell_count: how many cells it has run.
        caller: who acquired its kernel last, for the audit log.
        lease_request: the group and the priority that its kernel was requested with.
        users: how many callers use it now, such as open ``acquire_kernel`` contexts.
        uses: how many callers have begun to use it so far.
        closing: whether its manager shuts down. Cells that wait for their turn are then refused.
        idle_since: monotonic seconds of the last use.
        ended: why the session is over; None while it is not.
        asleep: whether it has no kernel and continues from its newest checkpoint at its next use.
        previous_end: why this agent's previous kernel ended, such as "idle"; None for its first kernel.
        files_in: the paths that ``put_file`` wrote in its kernel, each with the time (seconds since the epoch).
        restored: the checkpoint that its variables come from; None if they come from none.
        parent_id: the session that it was forked from.
        owner: this process's name in the store.
        policy: what its cells may do.
        packages: the wheels that were handed into its kernel, by SHA-256.
        package_source: where packages come from; None: there are none.
    """

    session_id: str
    kernel_id: str
    agent_id: str
    created_at: float = field(default_factory=time.time)
    last_used_at: float = field(default_factory=time.time)
    last_checkpoint: float | None = None
    checkpoint_data: dict[str, Any] | None = None
    execution_history: list[dict[str, Any]] = field(default_factory=list)
    previous_end: str | None = None
    kernel: Kernel | None = field(default=None, repr=False)
    ended: str | None = field(default=None, repr=False)
    asleep: bool = field(default=False, repr=False)
    restored: Restored | None = field(default=None, repr=False)
    parent_id: str | None = None
    cell_count: int = 0
    caller: str = ""
    lease_request: LeaseRequest = field(default_factory=LeaseRequest)
    store: History | None = field(default=None, repr=False)
    owner: str = field(default="", repr=False)
    policy: Policy = field(default_factory=Policy, repr=False)
    packages: dict[str, Wheel] = field(default_factory=dict, repr=False)
    package_source: PackageSource | None = field(default=None, repr=False)
    notices: list[str] = field(default_factory=list, repr=False)
    files_in: dict[str, float] = field(default_factory=dict, repr=False)
    users: int = field(default=0, repr=False)
    uses: int = field(default=0, repr=False)
    closing: bool = field(default=False, repr=False)
    idle_since: float = field(default_factory=time.monotonic, repr=False)
    _end_written: bool = field(default=False, init=False, repr=False)
    _home: HomeLoop = field(default_factory=HomeLoop.of_caller, init=False, repr=False)

    def __post_init__(self) -> None:
        self._row = SessionRow(self.store, self.session_id, self.owner)

    @classmethod
    def of(cls, agent_id: str, kernel: Kernel, policy: Policy) -> Self:
        """Return a live session that has no store."""
        return cls(uuid.uuid4().hex, kernel.kernel_id, agent_id, kernel=kernel, policy=policy)

    @classmethod
    def new(
        cls,
        agent_id: str,
        *,
        store: History,
        owner: str,
        policy: Policy,
        package_source: PackageSource | None = None,
    ) -> Self:
        """Return a session that has no kernel and no row yet: ``begin`` gives it both."""
        return cls(
            uuid.uuid4().hex, "", agent_id, store=store, owner=owner, policy=policy, package_source=package_source
        )

    @classmethod
    def of_record(
        cls,
        record: SessionRecord,
        *,
        store: History,
        owner: str,
        policy: Policy,
        package_source: PackageSource | None = None,
    ) -> Self:
        """Return the session of a row, without its kernel: ``wake`` or ``adopt`` gives it one."""
        session = cls(
            record.session_id,
            record.kernel_id,
            record.agent_id,
            created_at=record.created_at,
            parent_id=record.parent_id,
            cell_count=record.cells,
            asleep=True,
            store=store,
            owner=owner,
            policy=policy,
            package_source=package_source,
        )
        session._forget_history()
        return session

    def running_commands(self) -> list[str]:
        """Return the commands that run in its kernel, each as its number and the beginning of its text."""
        return []

    # Transitions

    @property
    def state(self) -> SessionState | Literal["new"]:
        """Where the session is in the module's diagram."""
        if self.ended is not None:
            return "ended"
        if self.asleep:
            return "asleep"
        return "new" if self.kernel is None else "live"

    async def begin(self, kernel: Kernel, *, last_end: str | None = None, lost_files: Sequence[str] = ()) -> None:
        """Give a new session its first kernel. If the agent lost an earlier one, the first result says so.

        Args:
            last_end: why the agent's last kernel ended.
            lost_files: the paths that ``put_file`` wrote in that kernel.

        Raises:
            StoreError: its row cannot be written. The session has ended.
            SessionBusyError: another process was quicker to begin a session of the agent. This one has ended.
        """
        try:
            if not await self._row.add(self.agent_id, kernel):
                message = f"another process has just begun a session of agent {self.agent_id!r}."
                raise SessionBusyError(message, agent_id=self.agent_id, waited=0.0)
        except BaseException:
            self.ended = Outcome.NEVER_STARTED
            raise
        self.previous_end = last_end
        if last_end is not None and is_loss(last_end):
            self.notify(loss_notice(last_end, lost_files))
        self._attach(kernel)
        self.note(kernel, "session.started", previous_end=last_end)

    async def wake(
        self,
        kernel: Kernel,
        load: Callable[[], Awaitable[Restored]],
        *,
        cells: int,
        last_end: str | None = None,
        lost_files: Sequence[str] = (),
    ) -> None:
        """Give a sleeping session a kernel that loads its checkpoint. On any failure it sleeps as before.

        Args:
            load: loads the checkpoint into the kernel.
            cells: how many cells the session has run, by its row.
            last_end: why its last kernel ended, where this process knows.
            lost_files: the paths that ``put_file`` wrote in its last kernel after the checkpoint.

        Raises:
            CheckpointError: another process was quicker, or ``load`` raised it.
            StoreError: the row cannot be written.
        """
        if not await self.take_over(None):
            raise CheckpointError(f"another process has just woken the session of agent {self.agent_id!r}.")
        try:
            restored = await load()
            await self._row.lives(kernel)
        except BaseException:
            self._row.sleeps_still()
            raise
        self.cell_count = cells
        self._forget_history()
        self._attach(kernel)
        self.restored = restored
        self.packages = {wheel.sha256: wheel for wheel in restored.packages}
        self.previous_end = last_end or self.previous_end
        self.notices += restored.notices(cells, self.previous_end, lost_files)
        self.note(kernel, "session.woken", checkpoint=restored.checkpoint_id, lost=len(restored.lost))

    async def move(self, kernel: Kernel, restored: Restored) -> None:
        """Continue in another kernel, which has loaded a checkpoint. On any failure the session keeps its own.

        Raises:
            KernelDiedError, SessionEndedError: one of the two kernels died meanwhile, or the session ended.
            StoreError: the row cannot be written.
        """
        old = self.live_kernel()
        try:
            await self._row.lives(kernel)
            self.live_kernel()
            if not kernel.is_alive:
                raise kernel.died_error(Outcome.KERNEL_DIED)
        except BaseException:
            if self.kernel is old:
                self._row.lives_still(old)
            raise
        self._notify_ended_commands("the session was restored to a checkpoint")
        self._attach(kernel)
        self.restored = restored
        self.packages = {wheel.sha256: wheel for wheel in restored.packages}
        self.note(kernel, "session.restored", checkpoint=restored.checkpoint_id, lost=len(restored.lost))

    async def restart(self, kernel: Kernel) -> None:
        """Continue a sleeping session in a fresh kernel, without its variables. On any failure it sleeps as before.

        Raises:
            SessionBusyError: another process was quicker to wake it.
            StoreError: the row cannot be written.
        """
        if not await self.take_over(None):
            message = f"another process has just woken the session of agent {self.agent_id!r}."
            raise SessionBusyError(message, agent_id=self.agent_id, waited=0.0)
        try:
            await self._row.lives(kernel)
        except BaseException:
            self._row.sleeps_still()
            raise
        self._attach(kernel)
        self.restored = None
        self.note(kernel, "session.restarted")

    def charge(self, place: Place | None) -> None:
        """Set the place of a cluster's quota that the session takes with its next kernel."""
        self._row.place = place

    async def take_over(self, owner: str | None) -> bool:
        """Make this process the session's owner in place of ``owner``: None for a session that nobody owns.

        Returns:
            False when another process was quicker.
        """
        return await self._row.take_over(owner)

    def adopt(self, kernel: Kernel, *, interrupted: bool, commands: int = 0) -> None:
        """Continue in the kernel of a dead process, once ``take_over`` made this process the owner of the live row.

        Args:
            interrupted: whether a cell ran when the process died.
            commands: how many commands ran when the process died.
        """
        if commands:
            stop_all_commands(kernel)
            self.notify(f"the orchestrator ended while {commands} commands ran: they were killed")
        if interrupted:
            self.notify(
                f"the orchestrator ended while cell {self.cell_count} ran: the cell was interrupted and not run again; "
                "what it had done by then remains"
            )
        self._attach(kernel)
        self.note(kernel, "session.adopted", cells=self.cell_count)

    async def sleep(self, reason: str) -> None:
        """Give up the kernel; the session continues from its newest checkpoint. Idempotent; an ended one stays ended.

        The caller ends the kernel.
        """
        if self.ended is not None:
            return
        if self.kernel is not None:
            commands = self._notify_ended_commands("the session went to sleep")
            self.note(self.kernel, "session.asleep", reason=reason, cells=self.cell_count, commands=commands)
        self.previous_end = reason
        self._detach()
        self._forget_history()
        await self._row.sleeps()

    def abandon(self) -> None:
        """Let go of a live kernel, which runs on. The row stays live, as after a crash: the next process adopts it."""
        if self.kernel is not None:
            self.note(self.kernel, "session.left", cells=self.cell_count)
        self._detach()

    def disown(self) -> None:
        """Note that another process has the session now: it is over here. The caller ends the kernel."""
        if self.kernel is not None:
            self.note(self.kernel, "session.taken_over", cells=self.cell_count)
        self.ended, self.asleep = Outcome.TAKEN_OVER, False

    async def end(self, reason: str) -> None:
        """End the session. Idempotent: the first reason stays. The caller ends the kernel."""
        if self.ended is not None:
            return
        self.ended, self.asleep = reason, False
        if self.kernel is not None:
            commands = len(self.running_commands())
            self.note(self.kernel, "session.ended", reason=reason, cells=self.cell_count, commands=commands)
        self._end_written = await self._row.ends(reason)

    async def add_checkpoint(self, record: CheckpointRecord) -> list[str]:
        """Add a checkpoint whose file is in place.

        Returns:
            The ids of those that it replaces. The caller removes the files.

        Raises:
            NotOwnerError: another process has taken the session over.
            StoreError: see ``History.add_checkpoint``.
        """
        return await self._row.add_checkpoint(record)

    async def drop_checkpoints(self) -> list[str]:
        """Forget an ended session's checkpoints, but for those that a caller asked for.

        Returns:
            Their ids. The caller removes the files.
        """
        return await self._row.drop_checkpoints() if self._end_written else []

    async def fork(self, agent_ids: Sequence[str], copy: Callable[[Self], Awaitable[CheckpointRecord]]) -> list[Self]:
        """Return a sleeping session with this one's state for each agent id; all or none.

        Args:
            copy: makes a fork's checkpoint.

        Raises:
            StoreError: the rows cannot be written.
        """
        kernel = self.live_kernel()
        forks = [
            type(self)(
                uuid.uuid4().hex,
                kernel.kernel_id,
                agent_id,
                parent_id=self.session_id,
                lease_request=self.lease_request,
                asleep=True,
                store=self.store,
                owner=self.owner,
                policy=self.policy,
                package_source=self.package_source,
            )
            for agent_id in agent_ids
        ]
        if running := self.running_commands():
            for fork in forks:
                fork.notify(f"{commands_text(running)} ran in the session that was forked, and do not run here")
        records = [(fork.agent_id, await copy(fork)) for fork in forks]
        await self._row.add_forks(records, kernel)
        return forks

    def _notify_ended_commands(self, what: str) -> int:
        """Say with the next result which commands end with the kernel. Returns how many there are."""
        running = self.running_commands()
        if running:
            self.notify(f"{what} while {commands_text(running)} ran, which ended with the kernel")
        return len(running)

    def note_package(self, wheel: Wheel) -> None:
        """Note that a wheel was handed into the kernel."""
        self.packages[wheel.sha256] = wheel

    def note_file_in(self, path: str) -> None:
        """Note that ``put_file`` wrote a file in the kernel. Keeps the last thousand paths."""
        self.files_in.pop(path, None)
        self.files_in[path] = time.time()
        if len(self.files_in) > _FILES_NOTED:
            del self.files_in[next(iter(self.files_in))]

    def _attach(self, kernel: Kernel) -> None:
        self.kernel, self.kernel_id, self.asleep = kernel, kernel.kernel_id, False
        self.touch()

    def _detach(self) -> None:
        self.kernel, self.asleep, self.files_in, self.packages = None, True, {}, {}

    def _forget_history(self) -> None:
        """Read the history from the store when it is next used."""
        if self.store is not None:
            vars(self).pop("execution_history", None)

    # Use

    def lease(self, request: LeaseRequest, caller: str) -> None:
        """Note for which group and priority, and for which caller, the kernel is acquired."""
        self.lease_request, self.caller = request, caller

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Count one more user, so that the session does not sleep."""
        self.users += 1
        self.uses += 1
        try:
            yield
        finally:
            self.users -= 1
            self.touch()

    def touch(self) -> None:
        """Set the time of the last use to now."""
        self.last_used_at, self.idle_since = time.time(), time.monotonic()

    def notify(self, notice: str) -> None:
        """Add a warning to the next result that the agent gets, unless it is there already."""
        if notice not in self.notices:
            self.notices.append(notice)

    def take_notices(self) -> tuple[str, ...]:
        """Return the warnings that are due, once."""
        notices, self.notices = tuple(self.notices), []
        return notices

    def refuse_cells(self) -> None:
        """Refuse every cell that has not begun: the manager shuts down."""
        self.closing = True

    @property
    def is_awake(self) -> bool:
        """Whether it has a kernel that is alive."""
        return self.kernel is not None and self.kernel.is_alive

    def note(self, kernel: Kernel, event: str, **details: Any) -> None:
        """Publish an event of this session to the feed."""
        kernel.note(event, agent=self.agent_id, caller=self.caller, session=self.session_id, **details)

    def live_kernel(self) -> Kernel:
        """Return the kernel.

        Raises:
            KernelDiedError: the kernel is gone.
            ManagerClosedError: the session ended, or fell asleep, with its manager.
            SessionEndedError: the session sleeps, has ended for another reason, or never had a kernel.
        """
        if (self.previous_end if self.asleep else self.ended) == Outcome.SHUTDOWN:
            raise ManagerClosedError
        death = kernel_end(self.ended)
        if self.kernel is not None and (death or (self.ended is None and not self.kernel.is_alive)):
            raise self.kernel.died_error(death or Outcome.KERNEL_DIED)
        if self.ended is not None or self.kernel is None:
            reason = self.ended or (Outcome.ASLEEP if self.asleep else Outcome.NEVER_STARTED)
            raise SessionEndedError(
                f"the session of agent {self.agent_id!r} {'is asleep' if self.asleep else f'has ended ({reason})'}.",
                reason=reason,
                remedy="Acquire the agent's kernel again.",
            )
        return self.kernel
