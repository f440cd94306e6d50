"""Cells and commands that a synchronous manager has started: their methods wait for results."""

from __future__ import annotations

import signal as signals
from collections.abc import Generator
from typing import TYPE_CHECKING, TypeAlias

from cellblock.loopthread import LoopThread
from orchestrator import CommandEvent, CommandResult, ExecutionResult
from orchestrator import RunningCell as AsyncCell
from orchestrator import RunningCommand as AsyncCommand

if TYPE_CHECKING:
    from orchestrator.remote.remotecell import RemoteCell
    from orchestrator.remote.remotecommand import RemoteCommand

AnyCell: TypeAlias = "AsyncCell | RemoteCell"
AnyCommand: TypeAlias = "AsyncCommand | RemoteCommand"


class RunningCommand:
    """A command that a synchronous manager has started: ``orchestrator.RunningCommand``, whose methods wait here.

    Attributes:
        number, pid, command, started_at: see ``orchestrator.RunningCommand``.
    """

    def __init__(self, command: AnyCommand, thread: LoopThread) -> None:
        self._command = command
        self._thread = thread
        self.number = command.number
        self.pid = command.pid
        self.command = command.command
        self.started_at = command.started_at

    def __repr__(self) -> str:
        return repr(self._command)

    @property
    def is_running(self) -> bool:
        return self._command.is_running

    def wait(self, timeout: float | None = None) -> CommandResult:
        """See ``orchestrator.RunningCommand.wait``."""
        return self._thread.run(lambda: self._command.wait(timeout))

    def events(self) -> Generator[CommandEvent, None]:
        """See ``orchestrator.RunningCommand.events``."""
        return self._thread.iterate(self._command.events())

    def kill(self, signal: int | str = signals.SIGKILL) -> bool:
        """See ``orchestrator.RunningCommand.kill``."""
        return self._thread.settle(lambda: self._command.kill(signal))

    def write(self, data: bytes | str) -> bool:
        """See ``orchestrator.RunningCommand.write``."""
        return self._thread.run(lambda: self._command.write(data))

    def close_stdin(self) -> None:
        """See ``orchestrator.RunningCommand.close_stdin``."""
        self._thread.run(self._command.close_stdin)

    def resize(self, rows: int, columns: int) -> None:
        """See ``orchestrator.RunningCommand.resize``."""
        self._thread.settle(lambda: self._command.resize(rows, columns))


class RunningCell:
    """A cell that a synchronous manager has started: ``orchestrator.RunningCell``, whose methods wait here.

    Attributes:
        id, code, started_at: see ``orchestrator.RunningCell``.
    """

    def __init__(self, cell: AnyCell, thread: LoopThread) -> None:
        self._cell = cell
        self._thread = thread
        self.id = cell.id
        self.code = cell.code
        self.started_at = cell.started_at

    def __repr__(self) -> str:
        return repr(self._cell)

    @property
    def is_running(self) -> bool:
        return self._cell.is_running

    def wait(self, timeout: float | None = None) -> ExecutionResult:
        """See ``orchestrator.RunningCell.wait``."""
        return self._thread.run(lambda: self._cell.wait(timeout))

    def interrupt(self) -> bool:
        """See ``orchestrator.RunningCell.interrupt``."""
        return self._thread.settle(self._cell.interrupt)
