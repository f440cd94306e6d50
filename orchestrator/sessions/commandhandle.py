"""RunningCommand: a command that the caller has started, and may watch, feed and stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from typing import Any

from orchestrator.command import Command
from orchestrator.errors import InvalidInputError
from orchestrator.output.commandresult import CommandFinished, CommandOutput, CommandResult
from orchestrator.output.events import OutputDropped

CommandEvent = CommandOutput | OutputDropped | CommandFinished


class RunningCommand:
    """A command of a session. It runs on if nobody uses this object, until its time limit or its kernel's end.

    Args:
        settled: its result, once it is kept in the history.
        held: keeps the session awake while somebody waits for the command.

    Attributes:
        number: its number in the session, from 1.
        pid: its process id in the sandbox.
        command: its arguments; one line if the shell runs it.
        started_at: seconds since the epoch.
    """

    def __init__(
        self,
        command: Command,
        settled: asyncio.Task[CommandResult],
        held: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._command = command
        self._settled = settled
        self._held = held
        self.number = command.number
        self.pid = command.pid
        self.command = command.command
        self.started_at = command.started_at

    @property
    def id(self) -> int:
        """Its number in the session."""
        return self.number

    @property
    def is_running(self) -> bool:
        return not self._command.is_over

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""
        return self._command.age_s

    def __repr__(self) -> str:
        state = "running" if self.is_running else "over"
        return f"<RunningCommand #{self.number} {' '.join(self.command)[:60]!r} {state}>"

    def as_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "command": list(self.command),
            "shell": self._command.shell,
            "pid": self.pid,
            "started_at": self.started_at,
            "age_s": self.age_s,
            "is_running": self.is_running,
        }

    def when_over(self, call: Callable[[asyncio.Task[CommandResult]], object]) -> None:
        """Call something with the task of its result soon after the command is over."""
        self._settled.add_done_callback(call)

    async def settled(self) -> None:
        """Wait until its result is known."""
        await asyncio.wait({self._settled})

    async def wait(self, timeout: float | None = None) -> CommandResult:
        """Wait until the command is over, and return its result. A caller that is cancelled leaves it running.

        Args:
            timeout: seconds to wait; None: until its end.

        Raises:
            TimeoutError: it still runs.
        """
        with self._held():
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._settled)

    async def events(self) -> AsyncGenerator[CommandEvent, None]:
        """Yield its output from the start, as it comes, and ``CommandFinished`` as the last event.

        Output that came earlier and exceeds 1 MiB is left out, but for its end: ``OutputDropped`` says so; the result
        has it, up to the output limit. From now on, the command waits for this consumer.

        Raises:
            InvalidInputError: somebody reads its output already.
        """
        with self._held():
            events = self._command.events()
            try:
                async for event in events:
                    yield event
            finally:
                self._command.mute()
                await events.aclose()
            yield CommandFinished(await asyncio.shield(self._settled))

    def kill(self, signal: int | str = signals.SIGKILL) -> bool:
        """Send a signal to the command and the processes of its group; SIGKILL to all that it has started.

        Args:
            signal: a number, or a name such as "SIGTERM" or "TERM".

        Returns:
            Whether it was running.

        Raises:
            InvalidInputError: there is no such signal.
        """
        number = signal_number(signal)
        running = self.is_running
        self._command.send_signal(number)
        return running

    async def write(self, data: bytes | str) -> bool:
        """Write to its stdin, and wait until the command has room for that.

        Returns:
            False if it takes no more input.

        Raises:
            InvalidInputError: it was started without ``keep_stdin=True``.
        """
        with self._held():
            return await self._command.write(data.encode() if isinstance(data, str) else bytes(data))

    async def close_stdin(self) -> None:
        """End its stdin. Idempotent."""
        with contextlib.suppress(InvalidInputError):
            await self._command.write(b"", last=True)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal, where it has one."""
        self._command.resize(rows, columns)


def signal_number(signal: int | str) -> int:
    """Return the number of a signal.

    Raises:
        InvalidInputError: there is no such signal.
    """
    try:
        if isinstance(signal, str):
            return signals.Signals[f"SIG{signal.upper().removeprefix('SIG')}"]
        return signals.Signals(signal)
    except (KeyError, ValueError):
        raise InvalidInputError(f"there is no signal {signal!r}.") from None
