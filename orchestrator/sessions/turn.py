"""Turn: one cell of a session, from its row in the store to its entry in the history, however it ends."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.celloptions import CellOptions
from orchestrator.execution import Cell
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import KernelResourceLimits
from orchestrator.output.events import CellFinished, Event, ExecutionResult, InputHandler
from orchestrator.output.watched import CellBegun, CellEnded, CellStarted
from orchestrator.tool import Tool
from orchestrator.toolcalls import ToolCalls

if TYPE_CHECKING:
    from orchestrator.sessions.session import KernelSession

_DEFAULTS = CellOptions()
_CANCELLED = 0.4  # seconds that a cancelled consumer waits for its cell: an interrupt took 0.02-0.23 s


class Turn:
    """One cell that has the session's lock. Used once.

    Attributes:
        cell: the cell that runs.
        task: the task that consumes it.
    """

    def __init__(
        self,
        session: KernelSession,
        kernel: Kernel,
        code: str,
        limits: KernelResourceLimits,
        answer: InputHandler | None,
        environment: Mapping[str, str] | None = None,
        tools: Mapping[str, Tool] | None = None,
        options: CellOptions = _DEFAULTS,
    ) -> None:
        note = partial(session.note, kernel)
        internal = partial(session.internal_tool, kernel)
        calls = ToolCalls(kernel, tools, internal, session.policy.tools, note, session)
        self.cell = Cell(kernel, code, limits, session.policy, answer, environment, calls, options)
        self.cell.announced = session.is_watched
        self.task = asyncio.current_task()
        self._session = session
        self._kernel = kernel
        self._code = code
        self._ending: asyncio.Task[None] | None = None

    async def run(self) -> AsyncGenerator[Event, None]:
        """Run the cell. See ``KernelSession.run``."""
        result: ExecutionResult | None = None
        events = self.cell.run()
        try:
            try:
                self.cell.send()
            finally:
                self._note_start()  # after sending: the audit log's thread would hold up the request
            async for event in events:
                if isinstance(event, CellBegun):
                    self._session.tell(CellStarted(self._code, event.execution_count))
                    continue
                if isinstance(event, CellFinished):
                    result = event.result  # if it cannot be written now, no partial result takes its place
                    result = await self._session.keep_result(result)  # before the caller sees it
                    event = CellFinished(result)
                else:
                    self._session.tell(event)
                yield event
        finally:
            await events.aclose()
            if self.cell.is_over:
                await self._close(result)
            else:
                self._ending = asyncio.create_task(self._close_later())
                await asyncio.wait({self._ending}, timeout=_CANCELLED)

    async def settled(self) -> None:
        """Wait for the end of a cell that was cancelled and ignores its interrupt. It ends when its kernel does."""
        if self._ending is not None:
            await asyncio.wait({self._ending})

    async def _close_later(self) -> None:
        await self.cell.end()
        await self._close(None)

    async def _close(self, result: ExecutionResult | None) -> None:
        try:
            if result is None:
                result = self.cell.partial_result()
                await self._session.keep_partial_result(result)
        finally:
            result = result or self.cell.partial_result()
            self._note_end(result)
            self._session.tell(CellEnded(result, self.cell.extras))
            self._session.end_turn(result)

    def _note_start(self) -> None:
        encoded = self._code.encode()
        code: dict[str, Any] = {"code_sha256": hashlib.sha256(encoded).hexdigest(), "code_bytes": len(encoded)}
        if self._session.policy.audit.code == "full":
            code["code"] = self._code
        number = self._session.cell_count
        self._session.note(self._kernel, "cell.started", cell=number, **code, **self._kernel.description())

    def _note_end(self, result: ExecutionResult) -> None:
        self._session.note(
            self._kernel,
            "cell.ended",
            cell=self._session.cell_count,
            runtime=result.runtime,
            outcome=result.outcome,
            error=None if result.error is None else result.error.ename,
            kernel_state=result.kernel_state,
            duration_s=round(result.duration_s, 6),
            evidence=result.evidence.as_dict(),
            truncated=None if result.truncated is None else result.truncated.as_dict(),
            mime_dropped=list(result.mime_dropped),
        )
