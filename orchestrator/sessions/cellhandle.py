"""RunningCell: a cell that was started, and that somebody may wait for later."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable

from orchestrator.errors import KernelError
from orchestrator.output.eventlog import EventLog
from orchestrator.output.events import Event, ExecutionResult
from orchestrator.sessions.session import KernelSession


class RunningCell:
    """A cell that runs, or waits for its turn, on its own. It ends like any cell, whether or not somebody waits.

    Args:
        running: its result.
        log: its events.

    Attributes:
        id: a name that no other cell has.
        session: the session that it belongs to.
        code: its code.
        started_at: seconds since the epoch.
    """

    def __init__(
        self, session: KernelSession, code: str, running: asyncio.Task[ExecutionResult], log: EventLog
    ) -> None:
        self.id = secrets.token_hex(8)
        self.session = session
        self.code = code
        self.started_at = time.time()
        self._running = running
        self._log = log
        self._when_forgotten: list[Callable[[], object]] = []
        self._is_forgotten = False

    @property
    def is_running(self) -> bool:
        """Whether it runs, or waits for its turn."""
        return not self._running.done()

    def __repr__(self) -> str:
        return f"<RunningCell {self.id} {'running' if self.is_running else 'over'}>"

    async def wait(self, timeout: float | None = None) -> ExecutionResult:
        """Wait until it is over, and return its result. A caller that is cancelled leaves it running.

        Args:
            timeout: seconds to wait; None: until its end.

        Raises:
            TimeoutError: it still runs.
            KernelError: it was interrupted while it waited for its turn and never ran, or the manager was shut down.
            KernelDiedError, SessionEndedError, StoreError: see ``AgentKernelManager.execute``.
        """
        async with asyncio.timeout(timeout):
            await asyncio.wait({self._running})
        if self._running.cancelled():
            raise KernelError(
                f"the cell {self.id} was cancelled: it was interrupted before its turn, or the manager was shut down.",
                remedy="Start it again.",
            )
        return self._running.result()

    def when_over(self, call: Callable[[asyncio.Task[ExecutionResult]], object]) -> None:
        """Call something with the cell's task soon after the cell is over."""
        self._running.add_done_callback(call)

    def when_forgotten(self, call: Callable[[], object]) -> None:
        """Call something when the manager does not know the cell by its id any longer; at once if it does not."""
        if self._is_forgotten:
            call()
        else:
            self._when_forgotten.append(call)

    def forget(self) -> None:
        """Say that the manager does not know it any longer. Who holds it may go on using it."""
        self._is_forgotten = True
        self.forget_events()
        for call in self._when_forgotten:
            call()

    @property
    def log_bytes(self) -> int:
        """How much memory its events take."""
        return self._log.bytes

    @property
    def log_events(self) -> int:
        """How many events it keeps."""
        return len(self._log.events)

    def forget_events(self) -> None:
        """Let ``events`` have only the last event from now on."""
        self._log.shorten()

    async def events(self, after: int = 0) -> AsyncGenerator[Event, None]:
        """Yield its outputs from the start, as they come; the last event is ``CellFinished`` with the result.

        Several callers may do so, also after its end. None of them makes the cell wait, or ends it by stopping early.
        Of a cell that is over, the manager may keep only the last event: OutputDropped stands for those before it, and
        the result has all outputs.

        Args:
            after: how many events to leave out, such as those that the caller has seen.

        Raises:
            InvalidInputError: it is over, and had fewer events than ``after``.
            See ``wait``.
        """
        async with contextlib.aclosing(self.numbered_events(after)) as events:
            async for _, event in events:
                yield event

    async def numbered_events(self, after: int = 0) -> AsyncGenerator[tuple[int, Event], None]:
        """Yield what ``events`` yields, with the number of each: what ``after`` is to be for going on behind it."""
        async with contextlib.aclosing(self._log.follow(after)) as events:
            async for item in events:
                yield item
        if self._running.cancelled():
            await self.wait()

    def interrupt(self) -> bool:
        """Interrupt it as ``AgentKernelManager.interrupt`` does. A cell that waits for its turn never runs.

        Returns:
            Whether it was running or waiting.
        """
        if self.is_running and not self.session.interrupt_of(self._running):
            self._running.cancel()
            return True
        return self.is_running
