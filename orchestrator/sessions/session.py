"""KernelSession: one agent's kernel, its numbered cells and their history.

A session lives on the host; its kernel is only where its cells run. A session lock serialises the cells: two agents
never share a session, and two tasks of one agent take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.errors import SessionEndedError, StoreError
from orchestrator.execution import Cell
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import KernelResourceLimits
from orchestrator.outcome import Outcome, kernel_end
from orchestrator.output.events import CellFinished, Event, ExecutionResult, InputHandler
from orchestrator.policy.policy import Policy
from orchestrator.pool.scheduler import LeaseRequest
from orchestrator.store.history import History
from orchestrator.telemetry import Telemetry

_log = logging.getLogger(__name__)
_CANCELLED = 0.4  # seconds that a cancelled consumer waits for its cell: an interrupt took 0.02-0.23 s
_NAMED = 5  # lost variables that a notice names
_NEVER_RAN: dict[str, Any] = {"status": "error", "outcome": "cancelled", "outputs": [], "error": None}


@dataclass(frozen=True, slots=True)
class Lost:
    """Something that a checkpoint could not hold.

    Attributes:
        name: of the variable that it is, or is in.
        kind: its type.
        reason: why. All three are the sandbox's words.
    """

    name: str
    kind: str
    reason: str


def names_of(lost: Sequence[Lost]) -> str:
    """Name what was lost to an agent, the first few of it."""
    named = ", ".join(f"{loss.name} ({loss.kind}: {loss.reason})" for loss in lost[:_NAMED])
    more = len(lost) - _NAMED
    return named + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Restored:
    """What a session was woken from.

    Attributes:
        checkpoint_id: the checkpoint.
        cell: the last cell whose effects it has; those of later ones are lost.
        lost: what it could not hold, or could not be loaded.
        seconds: that loading it took.
    """

    checkpoint_id: str
    cell: int
    lost: tuple[Lost, ...]
    seconds: float


@dataclass(eq=False)
class KernelSession:
    """One agent's session. It outlives its kernels: while it is asleep it has none.

    Attributes:
        kernel_id: of its kernel, or of its last one.
        created_at, last_used_at, last_checkpoint: seconds since the epoch, for people; no deadline is made of them.
        execution_history: one ``{"timestamp", "code", "result"}`` per cell, in order. The entry is made before the
            cell runs, with ``result["status"] == "running"``, and closed after: a crash leaves evidence of it. Of a
            session that was woken it is read from the store when it is first asked for.
        cell_count: how many cells it has run.
        caller: on whose behalf its kernel was acquired last.
        lease_request: the group and the priority that its kernel was asked for with.
        users: how many ``acquire_kernel`` contexts are open.
        closing: whether its manager shuts down: cells that wait for their turn do not get it.
        idle_since: monotonic seconds of the last use.
        ended: why the session is over; None while it lives.
        asleep: whether it has given up its kernel, and goes on from its newest checkpoint when it is wanted.
        previous_end: what became of this agent's kernel before, such as "idle"; None for its first.
        restored: what it was woken from; None where its variables come from no checkpoint.
        parent_id: the session that it was forked from.
        policy: what its cells may do.
        telemetry: observes its cells; None: nothing does.
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
    policy: Policy = field(default_factory=Policy, repr=False)
    telemetry: Telemetry | None = field(default=None, repr=False)
    notices: list[str] = field(default_factory=list, repr=False)
    users: int = field(default=0, repr=False)
    closing: bool = field(default=False, repr=False)
    idle_since: float = field(default_factory=time.monotonic, repr=False)
    _cell: Cell | None = field(default=None, init=False, repr=False)
    _ending: asyncio.Task[None] | None = field(default=None, init=False, repr=False)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)

    @classmethod
    def of(
        cls,
        agent_id: str,
        kernel: Kernel,
        policy: Policy,
        *,
        store: History | None = None,
        telemetry: Telemetry | None = None,
    ) -> KernelSession:
        return cls(
            uuid.uuid4().hex,
            kernel.kernel_id,
            agent_id,
            kernel=kernel,
            store=store,
            policy=policy,
            telemetry=telemetry,
        )

    def __getattr__(self, name: str) -> Any:
        """Read the history of a session that was woken, the first time that somebody asks for it."""
        if name == "execution_history" and "session_id" in vars(self) and self.store is not None:
            cells = self.store.cells(self.session_id)
            self.execution_history = [
                {"timestamp": cell.started_at, "code": cell.code, "result": cell.result} for cell in cells
            ]
            return self.execution_history
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def forget_history(self) -> None:
        """Let the history be read from the store again when it is asked for."""
        vars(self).pop("execution_history", None)

    def add_execution(self, code: str, result: dict[str, Any]) -> None:
        """Append a cell to the history."""
        self.execution_history.append({"timestamp": time.time(), "code": code, "result": result})

    def attach(self, kernel: Kernel) -> None:
        """Give the session a kernel that has its state."""
        self.kernel = kernel
        self.kernel_id = kernel.kernel_id
        self.asleep = False
        self.touch()

    def detach(self) -> None:
        """Note that it has given up its kernel."""
        self.kernel = None
        self.asleep = True

    @contextlib.asynccontextmanager
    async def between_cells(self) -> AsyncIterator[None]:
        """Wait until no cell runs, and let none begin."""
        async with self._lock:
            yield

    def checkpoint(self) -> dict[str, Any]:
        """Note the history as it is now, in ``checkpoint_data``, and return it."""
        self.last_checkpoint = time.time()
        self.checkpoint_data = {
            "session_id": self.session_id,
            "kernel_id": self.kernel_id,
            "agent_id": self.agent_id,
            "checkpoint_time": self.last_checkpoint,
            "execution_history": list(self.execution_history),
        }
        return self.checkpoint_data

    def touch(self) -> None:
        """Note that the session is in use now."""
        self.last_used_at = time.time()
        self.idle_since = time.monotonic()

    @property
    def is_awake(self) -> bool:
        """Whether it has a kernel, and that one lives."""
        return self.kernel is not None and self.kernel.is_alive

    @property
    def is_busy(self) -> bool:
        """Whether a cell runs or waits for its turn."""
        return self._lock.locked()

    @property
    def running_cell(self) -> tuple[int, float] | None:
        """The number of the cell that runs, and for how many seconds it has; None between cells."""
        return None if self._cell is None else (self.cell_count, self._cell.age_s)

    def note_operator(self, action: str) -> None:
        """Note in the audit log what an operator does to this session."""
        if self.kernel is not None:
            self.note(self.kernel, f"operator.{action}", cell=self.cell_count)

    def interrupt(self) -> bool:
        """Interrupt the cell that runs. Returns whether there is one."""
        if self._cell is None:
            return False
        self._cell.interrupt()
        return True

    def live_kernel(self) -> Kernel:
        """Return the kernel.

        Raises:
            KernelDiedError: the kernel is gone.
            SessionEndedError: the session is over for another reason, or never had a kernel.
        """
        death = kernel_end(self.ended)
        if self.kernel is not None and (death or (self.ended is None and not self.kernel.is_alive)):
            raise self.kernel.died_error(death or Outcome.KERNEL_DIED)
        if self.ended is not None or self.kernel is None:
            reason = self.ended or ("asleep" if self.asleep else "never_started")
            raise SessionEndedError(
                f"the session of agent {self.agent_id!r} {'is asleep' if self.asleep else f'has ended ({reason})'}.",
                reason=reason,
                remedy="Acquire the agent's kernel again.",
            )
        return self.kernel

    async def run(
        self, code: str, limits: KernelResourceLimits, answer: InputHandler | None = None
    ) -> AsyncGenerator[Event, None]:
        """Run one cell when its turn comes, and keep it in the history, however it ends.

        A consumer that stops early or is cancelled has waited 0.4 s at most for its cell to end. One that does not
        heed its interrupt goes on to its end by the grace period; until then the session's next cell has to wait.

        Args:
            answer: see ``Cell``.

        Raises:
            SessionEndedError, KernelDiedError, KernelTimeoutError: see ``live_kernel``, ``Cell.send`` and ``Cell.run``.
        """
        await self._lock.acquire()
        try:
            kernel = self.live_kernel()
            if self.closing:
                raise SessionEndedError("the manager shuts down; the cell has not run.", reason="shutdown")
            await self._open_row(code, kernel)
            if "execution_history" in vars(self):
                self.add_execution(code, {"status": "running"})
            cell = self._cell = Cell(kernel, code, limits, self.policy, answer)
        except BaseException:
            self._lock.release()
            raise
        result: ExecutionResult | None = None
        events = cell.run()
        try:
            try:
                cell.send()
            finally:
                self._note_start(kernel, code)  # only now: the audit log's thread would else hold up the request
            async for event in events:
                if isinstance(event, CellFinished):
                    result = self._with_notices(event.result)
                    await self._close_row(result)  # before the caller hears of it
                    event = CellFinished(result)
                yield event
        finally:
            await events.aclose()
            if cell.is_over:
                await self._close(cell, kernel, result)
            else:
                self._ending = asyncio.create_task(self._close_later(cell, kernel))
                await asyncio.wait({self._ending}, timeout=_CANCELLED)

    async def settled(self) -> None:
        """Wait for the end of a cell that was cancelled and does not heed it. It comes at once when the kernel goes."""
        if self._ending is not None:
            await asyncio.wait({self._ending})

    async def _close_later(self, cell: Cell, kernel: Kernel) -> None:
        await cell.end()
        await self._close(cell, kernel, None)

    async def _close(self, cell: Cell, kernel: Kernel, result: ExecutionResult | None) -> None:
        try:
            if result is None:
                result = cell.partial_result()
                if self.store is not None:
                    with _logged():
                        await self.store.run(History.end_cell, self.session_id, self.cell_count, result.as_dict())
        finally:
            if "execution_history" in vars(self) and self.execution_history and result is not None:
                self.execution_history[-1]["result"] = result.as_dict()
            self._cell = None
            self._note_end(kernel, result or cell.partial_result())
            self.touch()
            self._lock.release()

    async def _open_row(self, code: str, kernel: Kernel) -> None:
        """Note in the store that the next cell is about to run."""
        number = self.cell_count + 1
        if self.store is not None:
            try:
                await self.store.run(History.begin_cell, self.session_id, number, code, kernel.kernel_id)
            except asyncio.CancelledError:  # it is in the store, or will be, and will not run
                self.cell_count = number
                self.store.submit(History.end_cell, self.session_id, number, _NEVER_RAN)
                if "execution_history" in vars(self):
                    self.add_execution(code, dict(_NEVER_RAN))
                raise
        self.cell_count = number

    async def _close_row(self, result: ExecutionResult) -> None:
        if self.store is None:
            return
        try:
            await self.store.run(History.end_cell, self.session_id, self.cell_count, result.as_dict())
        except StoreError as error:
            raise StoreError(
                f"the cell has run, and its result could not be kept: {error.message}",
                result=result,
                remedy=f"The result is in this error, and is kept with the next cell that can be. {error.remedy}",
            ) from error

    def _with_notices(self, result: ExecutionResult) -> ExecutionResult:
        """Tell the agent, with the first result that can, what became of its session since."""
        notices, self.notices = tuple(self.notices), []
        return replace(result, warnings=(*result.warnings, *notices)) if notices else result

    def note(self, kernel: Kernel, event: str, **details: Any) -> None:
        """Add an entry on this session to the audit log."""
        kernel.note(event, agent=self.agent_id, caller=self.caller, session=self.session_id, **details)

    def _note_start(self, kernel: Kernel, code: str) -> None:
        encoded = code.encode()
        said: dict[str, Any] = {"code_sha256": hashlib.sha256(encoded).hexdigest(), "code_bytes": len(encoded)}
        if self.policy.audit.code == "full":
            said["code"] = code
        self.note(kernel, "cell.started", cell=self.cell_count, **said, **kernel.description())

    def _note_end(self, kernel: Kernel, result: ExecutionResult) -> None:
        if self.telemetry is not None:
            self.telemetry.cell_ended(result)
        self.note(
            kernel,
            "cell.ended",
            cell=self.cell_count,
            outcome=result.outcome,
            error=None if result.error is None else result.error.ename,
            kernel_state=result.kernel_state,
            duration_s=round(result.duration_s, 6),
            evidence=result.evidence.as_dict(),
            truncated=None if result.truncated is None else result.truncated.as_dict(),
            mime_dropped=list(result.mime_dropped),
        )


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Log a failure to keep a result, where another error is on its way to the caller."""
    try:
        yield
    except StoreError as error:
        _log.error("a cell's result is not in the history yet: %s", error)
