"""Runs one command beside a session's cells: starts it, streams its output, and stops it at its deadline.

A command is over when the kernel reports its end, or on the host's own evidence: the deadline, a disconnected wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from orchestrator.errors import EngineError, InvalidInputError, KernelDiedError
from orchestrator.kernel.commands import INPUT_PIECE, CommandSpec, RemoteProcess, StartRefused
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import MIB
from orchestrator.outcome import Exit, Outcome, Stop
from orchestrator.output.bytecollector import ByteCollector
from orchestrator.output.commandresult import CommandOutput, CommandResult
from orchestrator.output.events import Evidence, OutputDropped
from orchestrator.output.fileinfo import ChangedFile
from orchestrator.output.outputs import StreamName
from orchestrator.output.printable import printable
from orchestrator.output.sizes import EVENT

# Seconds for the kernel to report the end of a killed command. C code in a cell can hold up its control thread.
CONFIRM = 2.0
_UNCONFIRMED = 30.0  # seconds after which a kernel that has not reported it is killed: the command may still run
_BEHIND = MIB  # bytes of output that wait for a consumer who has not come yet; more are left out
_INPUT = 3600.0  # seconds that one write to stdin may take; the command's own deadline comes first
_NOT_EXECUTABLE = (errno.EACCES, errno.ENOEXEC, errno.EISDIR, errno.EPERM, errno.ELOOP, errno.E2BIG)


@dataclass(frozen=True, slots=True)
class CommandLimits:
    """What one command may use.

    Attributes:
        time_s: seconds.
        output_bytes: bytes of stdout and stderr together; above that the beginning and the end are kept.
        stops: whether a command that writes more than that is killed.
        streams_all: whether the consumer gets all output, as in a terminal; the result keeps ``output_bytes``.
    """

    time_s: float
    output_bytes: int
    stops: bool = False
    streams_all: bool = False


class Command:
    """One command on its way through a kernel. Used once.

    Args:
        number: its number in the session.
        command: the arguments as the caller gave them; one line for a shell.
        shell: whether it is a line for a shell.
        attached: whether ``events`` is consumed from the start; the command then waits for its consumer.

    Attributes:
        pid: its process id in the sandbox; 0 before it has started.
        was_sent: whether the kernel was asked to start it.
        started_at: seconds since the epoch.
    """

    def __init__(
        self,
        kernel: Kernel,
        spec: CommandSpec,
        limits: CommandLimits,
        *,
        number: int,
        command: tuple[str, ...],
        shell: bool,
        attached: bool,
    ) -> None:
        self.number = number
        self.command = command
        self.shell = shell
        self.pid = 0
        self.was_sent = False
        self._feeding: asyncio.Task[None] | None = None
        self.started_at = time.time()
        self._kernel = kernel
        self._spec = spec
        self._limits = limits
        self._process = RemoteProcess(kernel, self._note_start, self._take, self._end)
        self._collector = ByteCollector(limits.output_bytes)
        self._attached = attached
        self._consumed = False
        self._events: deque[tuple[CommandOutput, int]] = deque()  # each with the bytes that are not taken yet
        self._waiting = 0  # bytes of the events
        self._dropped = self._dropped_messages = 0
        self._muted = False
        self._over = asyncio.Event()
        self._ready = asyncio.Event()  # it has started, or is over
        self._wake = asyncio.Event()
        self._begun = time.monotonic()
        self._duration: float | None = None
        self._exit_code: int | None = None
        self._refused: StartRefused | None = None
        self._stopped: Stop | None = None
        self._signal: int | None = None
        self._confirmed = False
        self._changed: tuple[ChangedFile, ...] = ()
        self._changed_more = 0  # files that are not named
        self._timers: list[asyncio.TimerHandle] = []
        self._undo: Callable[[], None] = lambda: None
        self._loop = asyncio.get_running_loop()

    # Its life

    async def start(self) -> None:
        """Start it. When it cannot be started, it is over, and the result says so.

        Raises:
            InvalidInputError: its working directory cannot be used. Nothing was started.
            KernelDiedError: the kernel was gone before.
        """
        self._process.send(self._spec)
        self.was_sent = True
        self._undo = self._kernel.on_lost(self._lose)
        self._later(self._limits.time_s, self.stop, Outcome.TIMEOUT)
        try:
            await self._ready.wait()
        except asyncio.CancelledError:
            self.stop(Outcome.CANCELLED)
            raise
        if self._refused is not None and self._refused.folder:
            raise InvalidInputError(
                f"the command's working directory {printable(self._spec.cwd, 100)!r} cannot be used: "
                f"{self._refused.reason}."
            )

    def _note_start(self, started: int | StartRefused) -> None:
        if self.is_over:
            return
        if isinstance(started, StartRefused):
            self._refused = started
            if not started.folder:
                self._take("stderr", f"cellblock: {printable(self.command[0], 100)}: {started.reason}\n".encode())
            self._finish()
            return
        self.pid = started
        self._ready.set()
        if len(self._spec.input) > INPUT_PIECE:
            self._feeding = self._loop.create_task(self._feed())

    async def _feed(self) -> None:
        """Write what did not fit into the request. The command's end cancels it."""
        with contextlib.suppress(KernelDiedError):
            await self._process.write(self._spec.input[INPUT_PIECE:], last=not self._spec.keeps_stdin)

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    @property
    def age_s(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._begun

    async def ended(self) -> None:
        """Wait until it is over."""
        await self._over.wait()

    async def result(self) -> CommandResult:
        """Return the result of a command that is over."""
        end = None
        if self._confirmed or self._refused is not None:
            return self._judge(end)
        if not self._kernel.is_alive:
            try:
                end = await self._kernel.exit()
            except EngineError:
                end = Exit(Outcome.ENGINE_LOST, None)
        return self._judge(end)

    # Its output

    async def events(self) -> AsyncGenerator[CommandOutput | OutputDropped, None]:
        """Yield its output until it is over: at first what has come so far. Only one consumer may take it."""
        if self._consumed:
            raise InvalidInputError("the output of this command is being read already.")
        self._consumed = self._attached = True
        if self._dropped:
            yield OutputDropped(self._dropped, self._dropped_messages)
        while True:
            while self._events:
                event, untaken = self._events.popleft()
                self._waiting -= len(event.data) + EVENT
                yield event
                self._process.take(untaken)
            if self.is_over:
                break
            self._wake.clear()
            await self._wake.wait()
        if not self._limits.streams_all:
            for name, missing, data in self._collector.rest():
                if missing:
                    yield OutputDropped(missing, 1)
                if data:
                    yield CommandOutput(name, data)

    def _take(self, name: StreamName, data: bytes) -> None:
        shown = self._collector.add(name, data)
        if self._limits.streams_all:
            shown = data
        untaken = len(shown) if self._attached and not self._muted else 0
        self._process.take(len(data) - untaken)
        if shown and not self._muted:
            self._events.append((CommandOutput(name, shown), untaken))
            self._waiting += len(shown) + EVENT
            if not self._attached:
                self._drop_oldest()
            self._wake.set()
        if self._limits.stops and self._collector.is_past_limit:
            self.stop(Outcome.OUTPUT_LIMIT)

    def _drop_oldest(self) -> None:
        while self._waiting > _BEHIND and self._events:
            event, _untaken = self._events.popleft()
            self._waiting -= len(event.data) + EVENT
            self._dropped += len(event.data)
            self._dropped_messages += 1

    def mute(self) -> None:
        """Stop streaming: its consumer has left. The result keeps collecting."""
        self._muted = True
        while self._events:
            self._process.take(self._events.popleft()[1])
        self._waiting = 0

    # What is done to it

    def stop(self, why: Stop) -> None:
        """Kill it with all that it has started. It is over once the kernel reports its end, or after ``CONFIRM``."""
        if self.is_over or self._stopped is not None:
            return
        self._stopped = why
        self.mute()
        self._process.signal(signal.SIGKILL)
        self._later(CONFIRM, self._finish)
        self._loop.call_later(_UNCONFIRMED, self._kill_kernel, why)

    def give_up(self) -> None:
        """Count it as over, whatever the kernel reports: the caller is gone, and it could not be started."""
        self._stopped = self._stopped or Outcome.CANCELLED
        self._finish()

    def send_signal(self, number: int) -> None:
        """Send a signal to its process group; SIGKILL to all that it has started."""
        if not self.is_over:
            self._signal = number
            self._process.signal(number)

    async def write(self, data: bytes, *, last: bool = False) -> bool:
        """Write to its stdin. Returns False if it takes no more input.

        Raises:
            InvalidInputError: it was started without an open stdin.
        """
        if not self._spec.keeps_stdin:
            raise InvalidInputError("the command has no open stdin.", remedy="Start it with keep_stdin=True.")
        if self.is_over:
            return False
        writing = asyncio.ensure_future(self._process.write(data, last=last))
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({writing, over}, timeout=_INPUT, return_when=asyncio.FIRST_COMPLETED)
            with contextlib.suppress(KernelDiedError):
                return writing.done() and writing.result()
            return False
        finally:
            for task in (writing, over):
                task.cancel()
            await asyncio.gather(writing, over, return_exceptions=True)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""
        self._process.resize(rows, columns)

    # Its end

    def _end(self, exit_code: int | None, changed: tuple[ChangedFile, ...], more: int) -> None:
        self._confirmed = True
        self._changed, self._changed_more = changed, more
        self._exit_code = 128 - exit_code if exit_code is not None and exit_code < 0 else exit_code
        self._finish()

    def _lose(self) -> None:
        self._finish()

    def _finish(self) -> None:
        if self.is_over:
            return
        self._duration = time.monotonic() - self._begun
        for timer in self._timers:
            timer.cancel()
        self._undo()
        if self._feeding is not None:
            self._feeding.cancel()
        if self._confirmed or not self._kernel.is_alive or self._refused is not None:
            self._process.forget()
        self._over.set()
        self._ready.set()
        self._wake.set()

    def _kill_kernel(self, why: Stop) -> None:
        if not self._confirmed and self._kernel.is_alive:
            self._kernel.kill(why)

    def _later(self, seconds: float, callback: Callable[..., None], *args: object) -> None:
        self._timers.append(self._loop.call_later(seconds, callback, *args))

    def _judge(self, end: Exit | None) -> CommandResult:
        outcome, exit_code, warnings = self._outcome(end), self._exit_code, []
        if self._refused is not None:
            exit_code = 126 if self._refused.errno in _NOT_EXECUTABLE else 127
        elif self._stopped is not None and not self._confirmed and end is None:
            warnings.append(
                f"the kernel has not confirmed within {CONFIRM:g} s that the command has ended: it may still run"
            )
        elif self._confirmed and exit_code is None:
            warnings.append("a cell has taken the command's exit status, as os.wait() does")
        if self._changed_more:
            warnings.append(f"{self._changed_more} more files of /work changed")
        return CommandResult(
            number=self.number,
            command=self.command,
            shell=self.shell,
            outcome=outcome,
            exit_code=exit_code,
            stdout=self._collector.output("stdout"),
            stderr=self._collector.output("stderr"),
            duration_s=self._duration if self._duration is not None else self.age_s,
            truncated=self._collector.truncation,
            kernel_state="idle" if self._kernel.is_alive else "dead",
            runtime=self._kernel.runtime,
            evidence=self._evidence(outcome, end),
            warnings=tuple(warnings),
            changed_files=self._changed,
        )

    def _outcome(self, end: Exit | None) -> Outcome:
        if self._stopped is not None:
            return self._stopped
        if self._refused is not None:
            return Outcome.ERROR
        if not self._confirmed:
            return Outcome.KERNEL_DIED if end is None else end.reason
        if self._exit_code == 0:
            return Outcome.OK
        if self._signal is not None and self._exit_code == 128 + self._signal:
            return Outcome.INTERRUPTED
        if self._exit_code == 128 + signal.SIGKILL and self._oom_kills():
            return Outcome.OOM
        return Outcome.ERROR

    def _oom_kills(self) -> int:
        """Return how many processes of the sandbox the OOM killer has killed since that was last reported."""
        usage = self._kernel.usage()
        return 0 if usage is None else usage.oom_kills - self._kernel.oom_kills_reported

    def _evidence(self, outcome: Outcome, end: Exit | None) -> Evidence:
        oom_kills = self._oom_kills() if outcome is Outcome.OOM else 0
        if oom_kills:
            self._kernel.oom_kills_reported += oom_kills
        return Evidence(
            exit_code=None if end is None else end.exit_code,
            signal=None if end is None else end.signal,
            oom_kills=oom_kills,
            interrupts=int(self._stopped is not None),
            stopped_after_s=self._duration if self._stopped is not None else None,
            output_bytes=self._collector.bytes_seen,
            output_messages=self._collector.messages_seen,
        )
