"""KernelSession: one agent's session: its numbered cells, and their history.

A session lives on the host; its kernel is only where its cells run. A session lock serialises the cells: two agents
never share a session, and two tasks of one agent take turns. ``lifecycle`` has its states.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from orchestrator.celloptions import CellOptions
from orchestrator.errors import ManagerClosedError, SessionBusyError, StoreError
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import KernelResourceLimits
from orchestrator.output.commandresult import CommandResult
from orchestrator.output.events import Event, ExecutionResult, InputHandler, Output, OutputEvent
from orchestrator.output.watched import CellEnded, CellStarted, CellWatcher
from orchestrator.sessions.installing import INSTALL, install_tool
from orchestrator.sessions.lifecycle import Lifecycle
from orchestrator.sessions.sessioncommands import SessionCommands
from orchestrator.sessions.sessionrow import NEVER_RAN
from orchestrator.sessions.turn import Turn
from orchestrator.store.history import CommandRecord
from orchestrator.tool import Tool
from orchestrator.toolcalls import calling

_DEFAULTS = CellOptions()


@dataclass(eq=False)
class KernelSession(Lifecycle):
    """One agent's session. It outlives its kernels: while it sleeps it has none. ``Lifecycle`` lists its attributes."""

    _history_changes: int = field(default=0, init=False, repr=False)  # how often a cell's entry was written
    _history_is_own: bool = field(default=False, init=False, repr=False)  # whether it differs from the store's
    _turn: Turn | None = field(default=None, init=False, repr=False)
    installing: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)
    _tools: Mapping[str, Tool] = field(default_factory=dict, init=False, repr=False)
    _had_tools: bool = field(default=False, init=False, repr=False)  # then a cell without tools is told so
    _watchers: tuple[CellWatcher, ...] = field(default=(), init=False, repr=False)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False, repr=False)

    # Commands

    @cached_property
    def commands(self) -> SessionCommands:
        """The commands that run beside its cells."""
        return SessionCommands(self)

    def running_commands(self) -> list[str]:
        return self.commands.describe()

    async def begin_command(self, command: Sequence[str], kernel: Kernel, *, shell: bool) -> int:
        """Write that a command is about to run. Returns its number.

        Raises:
            StoreError: it cannot be written.
        """
        return await self._row.begin_command(command, kernel, shell=shell)

    def end_command(self, number: int, result: CommandResult) -> None:
        """Write a command's result, in the background."""
        self._row.end_command(number, result)

    async def command_history(self) -> list[CommandRecord]:
        """Return all commands of the session, with their results.

        Raises:
            StoreError: the store cannot be read.
        """
        return await self._row.read_commands()

    # Cells

    async def run(
        self,
        code: str,
        limits: KernelResourceLimits,
        answer: InputHandler | None = None,
        environment: Mapping[str, str] | None = None,
        tools: Mapping[str, Tool] | None = None,
        options: CellOptions = _DEFAULTS,
    ) -> AsyncGenerator[Event, None]:
        """Run one cell when its turn comes, and keep it in the history, however it ends.

        A consumer that stops early or is cancelled waits at most 0.4 s for its cell to end. A cell that ignores its
        interrupt ends with the grace period; until then the session's next cell waits.

        Args:
            answer, environment, options: see ``Cell``.
            tools: what it may call beside the session's own tools.

        Raises:
            SessionEndedError, KernelDiedError, KernelTimeoutError: see ``live_kernel``, ``Cell.send`` and ``Cell.run``.
            WrongEventLoopError: see ``HomeLoop.check``.
        """
        self._home.check()
        if calling.get() is self:
            raise SessionBusyError(
                "a tool cannot run a cell of the session whose cell calls it: it would wait for itself.",
                agent_id=self.agent_id,
                waited=0.0,
                remedy="Use another session for it.",
            )
        await self._lock.acquire()
        try:
            kernel = self.live_kernel()
            if self.closing:
                raise ManagerClosedError("the manager shuts down; the cell has not run.")
            await self._begin_cell(code, kernel)
            self._turn = turn = Turn(self, kernel, code, limits, answer, environment, self._offered(tools), options)
        except BaseException:
            self._lock.release()
            raise
        async with contextlib.aclosing(turn.run()) as events:
            async for event in events:
                yield event

    def watch(self, watcher: CellWatcher) -> Callable[[], None]:
        """Call ``watcher`` with what the session's cells do, whoever runs them, in the context of who runs them.

        Return what ends this; it is idempotent. A cell that runs already is not announced.

        Args:
            watcher: must not raise.
        """
        self._watchers += (watcher,)

        def end() -> None:
            self._watchers = tuple(one for one in self._watchers if one is not watcher)

        return end

    @property
    def is_watched(self) -> bool:
        """Whether anybody watches its cells."""
        return bool(self._watchers)

    def tell(self, event: CellStarted | OutputEvent | CellEnded) -> None:
        """Tell those who watch what a cell does. Called by the turn."""
        for watcher in self._watchers:
            watcher(event)

    def internal_tool(self, kernel: Kernel, name: str) -> Tool | None:
        """Return the tool of Cellblock's own that has this name, for a cell that calls it; None if there is none."""
        if self.package_source is None or name != INSTALL:
            return None
        return install_tool(self, kernel, self.package_source)

    @contextlib.contextmanager
    def offering(self, tools: Mapping[str, Tool] | None) -> Iterator[None]:
        """Offer tools to every cell while the context is open; None: those that are offered already."""
        before = self._tools
        if tools is not None:
            self._tools = tools
        try:
            yield
        finally:
            self._tools = before

    def _offered(self, tools: Mapping[str, Tool] | None) -> Mapping[str, Tool] | None:
        """Return the tools of a cell; None in a session that never had any."""
        offered = {**self._tools, **(tools or {})}
        self._had_tools = self._had_tools or bool(offered)
        return offered if self._had_tools else None

    async def keep_result(self, result: ExecutionResult) -> ExecutionResult:
        """Write the running cell's result to the store. Returns it with the notices that are due.

        Raises:
            StoreError: the result is not written yet; the error holds it.
        """
        notices = self.take_notices()
        result = replace(result, warnings=(*result.warnings, *notices)) if notices else result
        try:
            await self._row.end_cell(self.cell_count, result.as_dict())
        except StoreError as error:
            raise StoreError(
                f"the cell has run, and its result could not be kept: {error.message}",
                result=result,
                remedy=f"The result is in this error, and is kept with the next cell that can be. {error.remedy}",
            ) from error
        return result

    async def end_running_cells(self, result: dict[str, Any]) -> bool:
        """Give the cells that ran when their process died this result. Returns whether there were any.

        Raises:
            StoreError: the store cannot be read.
        """
        return await self._row.end_running_cells(result)

    async def end_running_commands(self, outcome: str) -> int:
        """Give the commands that ran when their process died this outcome. Returns how many there were.

        Raises:
            StoreError: the store cannot be read.
        """
        return await self._row.end_running_commands(outcome)

    async def keep_partial_result(self, result: ExecutionResult) -> None:
        """Write what is known of a cell that was cancelled or lost."""
        await self._row.end_lost_cell(self.cell_count, result.as_dict())

    def end_turn(self, result: ExecutionResult) -> None:
        """Close the running cell's entry in the history, and let the next cell run."""
        self._history_changes += 1
        if self._has_history and self.execution_history:
            self.execution_history[-1]["result"] = result.as_dict()
        if not self._history_is_own:
            self._forget_history()
        self._turn = None
        self.touch()
        self._lock.release()

    async def _begin_cell(self, code: str, kernel: Kernel) -> None:
        try:
            await self._row.begin_cell(self.cell_count + 1, code, kernel)
        except asyncio.CancelledError:
            self._add_cell(code, dict(NEVER_RAN))
            raise
        self._add_cell(code, {"status": "running"})

    def _add_cell(self, code: str, result: dict[str, Any]) -> None:
        self.cell_count += 1
        self._history_changes += 1
        if self._has_history:
            self._append(code, result)

    @property
    def is_busy(self) -> bool:
        """Whether a cell runs or waits for its turn."""
        return self._lock.locked()

    @property
    def running_cell(self) -> tuple[int, float] | None:
        """The number of the running cell, and for how many seconds it has run; None between cells."""
        return None if self._turn is None else (self.cell_count, self._turn.cell.age_s)

    def outputs_of_running(self, number: int, most: int) -> tuple[list[Output], int]:
        """Return the first outputs of the running cell as they are now, and how many there are.

        Args:
            number: of the cell. One that does not run has none.
        """
        if self._turn is None or number != self.cell_count:
            return [], 0
        return self._turn.cell.outputs_so_far(most)

    def interrupt(self) -> bool:
        """Interrupt the running cell. Returns whether there is one.

        Raises:
            WrongEventLoopError: see ``HomeLoop.check``.
        """
        self._home.check()
        if self._turn is None:
            return False
        self._turn.cell.interrupt()
        return True

    def interrupt_of(self, task: asyncio.Task[Any]) -> bool:
        """Interrupt the running cell if this task consumes it. Returns whether it does."""
        return self._turn is not None and self._turn.task is task and self.interrupt()

    @contextlib.asynccontextmanager
    async def between_cells(self) -> AsyncIterator[None]:
        """Wait until no cell runs, and keep others from starting."""
        async with self._lock:
            yield

    async def settled(self) -> None:
        """Wait for the end of a cell that was cancelled and ignores its interrupt. It ends when its kernel does."""
        if self._turn is not None:
            await self._turn.settled()

    def note_operator(self, action: str, operator: dict[str, Any] | None = None) -> None:
        """Add an operator's action on this session to the audit log, with the operator's uid, user name and pid."""
        if self.kernel is not None:
            self.note(self.kernel, f"operator.{action}", cell=self.cell_count, operator=operator or {})

    # History

    @property
    def _has_history(self) -> bool:
        return "execution_history" in vars(self)

    def __getattr__(self, name: str) -> Any:
        """Read the history from the store, at its first use after a cell or a wake. Blocks."""
        if name == "execution_history" and "_row" in vars(self):
            self._history_is_own = False
            self.execution_history = self._row.read_history_now()
            return self.execution_history
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    async def history(self) -> list[dict[str, Any]]:
        """Return ``execution_history``, having read it from the store without blocking the event loop.

        Raises:
            StoreError: the store cannot be read.
            WrongEventLoopError: see ``HomeLoop.check``.
        """
        self._home.check()
        while not self._has_history:
            changes = self._history_changes
            history = await self._row.read_history()
            if changes == self._history_changes and not self._has_history:  # else a cell has begun or ended meanwhile
                self._history_is_own = False
                self.execution_history = history
        return self.execution_history

    def add_execution(self, code: str, result: dict[str, Any]) -> None:
        """Append a cell to the history, in memory alone. Blocks where ``execution_history`` does."""
        self._append(code, result)
        self._history_is_own = True

    def _append(self, code: str, result: dict[str, Any]) -> None:
        self.execution_history.append({"timestamp": time.time(), "code": code, "result": result})

    def checkpoint(self) -> dict[str, Any]:
        """Copy identity and history to ``checkpoint_data``, and return it. Blocks where ``execution_history`` does."""
        self.last_checkpoint = time.time()
        self.checkpoint_data = {
            "session_id": self.session_id,
            "kernel_id": self.kernel_id,
            "agent_id": self.agent_id,
            "checkpoint_time": self.last_checkpoint,
            "execution_history": list(self.execution_history),
        }
        return self.checkpoint_data

    def clear_history(self) -> None:
        """Remove all entries from ``execution_history``; the store keeps its cells."""
        self.execution_history, self._history_is_own = [], True

    def replace_history(self, checkpoint: dict[str, Any]) -> None:
        """Replace the history by that of a value of ``checkpoint()``."""
        self.execution_history, self._history_is_own = list(checkpoint["execution_history"]), True
        self.checkpoint_data = checkpoint
        self.last_checkpoint = float(checkpoint["checkpoint_time"])
