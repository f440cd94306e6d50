"""KernelSession: one agent's kernel, its numbered cells and their history.

A session lives on the host; its kernel is only where its cells run. A session lock serialises the cells: two agents
never share a session, and two tasks of one agent take turns.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from typing import Any

from orchestrator.errors import SessionEndedError
from orchestrator.execution import Cell
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import KernelResourceLimits
from orchestrator.outputs import Answer, CellFinished, Event, ExecutionResult

_CANCELLED = 0.4  # seconds that a cancelled consumer waits for its cell: an interrupt took 0.02-0.23 s
DEATHS = ("oom", "kernel_died", "timeout", "cancelled", "engine_lost")  # ends of a session that were its kernel's


@dataclass(eq=False)
class KernelSession:
    """One agent's session.

    Attributes:
        created_at, last_used_at, last_checkpoint: seconds since the epoch, for people; no deadline is made of them.
        execution_history: one ``{"timestamp", "code", "result"}`` per cell, in order. The entry is made before the
            cell runs, with ``result["status"] == "running"``, and closed after: a crash leaves evidence of it.
        caller: on whose behalf its kernel was acquired last.
        users: how many ``acquire_kernel`` contexts are open.
        idle_since: monotonic seconds of the last use.
        ended: why the session is over; None while it lives.
        previous_end: what became of this agent's session before, such as "idle"; None for its first.
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
    caller: str = ""
    users: int = field(default=0, repr=False)
    idle_since: float = field(default_factory=time.monotonic, repr=False)
    _cell: Cell | None = field(default=None, init=False, repr=False)
    _ending: asyncio.Task[None] | None = field(default=None, init=False, repr=False)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)

    @classmethod
    def of(cls, agent_id: str, kernel: Kernel) -> KernelSession:
        return cls(uuid.uuid4().hex, kernel.kernel_id, agent_id, kernel=kernel)

    def add_execution(self, code: str, result: dict[str, Any]) -> None:
        """Append a cell to the history."""
        self.execution_history.append({"timestamp": time.time(), "code": code, "result": result})

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
    def is_busy(self) -> bool:
        """Whether a cell runs or waits for its turn."""
        return self._lock.locked()

    @property
    def running_cell(self) -> tuple[int, float] | None:
        """The number of the cell that runs, and for how many seconds it has; None between cells."""
        return None if self._cell is None else (len(self.execution_history), self._cell.age_s)

    def note_operator(self, action: str) -> None:
        """Note in the audit log what an operator does to this session."""
        if self.kernel is not None:
            self.note(self.kernel, f"operator.{action}", cell=len(self.execution_history))

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
        if self.kernel is not None and (self.ended in DEATHS or (self.ended is None and not self.kernel.is_alive)):
            raise self.kernel.died_error(self.ended or "kernel_died")
        if self.ended is not None or self.kernel is None:
            reason = self.ended or "never_started"
            raise SessionEndedError(
                f"the session of agent {self.agent_id!r} has ended ({reason}).",
                reason=reason,
                remedy="Acquire the agent's kernel again.",
            )
        return self.kernel

    async def run(
        self, code: str, limits: KernelResourceLimits, answer: Answer | None = None
    ) -> AsyncGenerator[Event, None]:
        """Run one cell when its turn comes, and keep it in the history, however it ends.

        A consumer that stops early or is cancelled has waited 0.4 s at most for its cell to end. One that does not
        heed its interrupt goes on to its end by the grace period; until then the session's next cell has to wait.

        Args:
            answer: see ``Cell``.

        Raises:
            SessionEndedError, KernelDiedError, KernelTimeoutError: see ``live_kernel`` and ``Cell.run``.
        """
        await self._lock.acquire()
        try:
            kernel = self.live_kernel()
            cell = self._cell = Cell(kernel, code, limits, answer)
        except BaseException:
            self._lock.release()
            raise
        self._note_start(kernel, code)
        self.add_execution(code, {"status": "running"})
        entry = self.execution_history[-1]
        result: ExecutionResult | None = None
        events = cell.run()
        try:
            async for event in events:
                if isinstance(event, CellFinished):
                    result = event.result
                    entry["result"] = result.as_dict()  # before the caller hears of it
                yield event
        finally:
            await events.aclose()
            if cell.is_over:
                self._close(cell, kernel, entry, result)
            else:
                self._ending = asyncio.create_task(self._close_later(cell, kernel, entry))
                await asyncio.wait({self._ending}, timeout=_CANCELLED)

    async def settled(self) -> None:
        """Wait for the end of a cell that was cancelled and does not heed it. It comes at once when the kernel goes."""
        if self._ending is not None:
            await asyncio.wait({self._ending})

    async def _close_later(self, cell: Cell, kernel: Kernel, entry: dict[str, Any]) -> None:
        await cell.end()
        self._close(cell, kernel, entry, None)

    def _close(self, cell: Cell, kernel: Kernel, entry: dict[str, Any], result: ExecutionResult | None) -> None:
        if result is None:
            result = cell.partial_result()
            entry["result"] = result.as_dict()
        self._cell = None
        self._note_end(kernel, result)
        self.touch()
        self._lock.release()

    def note(self, kernel: Kernel, event: str, **details: Any) -> None:
        """Add an entry on this session to the audit log."""
        kernel.note(event, agent=self.agent_id, caller=self.caller, session=self.session_id, **details)

    def _note_start(self, kernel: Kernel, code: str) -> None:
        encoded = code.encode()
        said: dict[str, Any] = {"code_sha256": hashlib.sha256(encoded).hexdigest(), "code_bytes": len(encoded)}
        if kernel.policy.audit.code == "full":
            said["code"] = code
        self.note(kernel, "cell.started", cell=len(self.execution_history) + 1, **said, **kernel.description())

    def _note_end(self, kernel: Kernel, result: ExecutionResult) -> None:
        kernel.telemetry.cell_ended(result)
        self.note(
            kernel,
            "cell.ended",
            cell=len(self.execution_history),
            outcome=result.outcome,
            error=None if result.error is None else result.error.ename,
            kernel_state=result.kernel_state,
            duration_s=round(result.duration_s, 6),
            evidence=asdict(result.evidence),
            truncated=None if result.truncated is None else asdict(result.truncated),
            mime_dropped=list(result.mime_dropped),
        )
