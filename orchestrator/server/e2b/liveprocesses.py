"""LiveProcesses: the commands of one sandbox that E2B's clients started, and may come back to by their process id."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from orchestrator.errors import CellblockError, CommandLimitError
from orchestrator.outcome import Outcome
from orchestrator.output.commandresult import CommandFinished, CommandOutput, CommandResult
from orchestrator.server.directory import Served
from orchestrator.server.e2b.e2berrors import E2bError, Refusal, gone, not_there, timed_out
from orchestrator.server.e2b.resultlines import left_out
from orchestrator.sessions.commandhandle import CommandEvent, RunningCommand

_PLACE = "e2b.processes"
_MOST_FOLLOWERS = 16
_AHEAD = 64  # pieces of output that a client may be behind; the command waits for a slow one
Told = dict[str, Any]


class LiveProcess:
    """A command that runs. Its output goes to all clients that follow it now, and nowhere if there are none.

    Args:
        config: how the client described it, for lists.
        is_terminal: whether it has a terminal.
    """

    def __init__(self, sandbox_id: str, running: RunningCommand, config: Told, tag: str, *, is_terminal: bool) -> None:
        self.running = running
        self._sandbox_id = sandbox_id
        self.is_terminal = is_terminal
        self._config = config
        self._tag = tag
        self._followers: set[asyncio.Queue[Told | Refusal | None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._is_over = False

    def as_dict(self) -> Told:
        form: Told = {"config": self._config, "pid": self.running.pid}
        return {**form, "tag": self._tag} if self._tag else form

    def read(self) -> None:
        """Begin to read its output. A client that follows it from its start must do so before."""
        self._reading = asyncio.create_task(self._read())

    async def stop_reading(self) -> None:
        """Let go of it: its followers' streams end, and its session may sleep."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})

    def subscribe(self) -> asyncio.Queue[Told | Refusal | None]:
        """Return a queue of what it does from now on. None is its end.

        Raises:
            CommandLimitError: as many clients follow it as may.
        """
        if len(self._followers) >= _MOST_FOLLOWERS:
            raise CommandLimitError(f"{_MOST_FOLLOWERS} clients follow this command already.", limit=_MOST_FOLLOWERS)
        queue: asyncio.Queue[Told | Refusal | None] = asyncio.Queue(_AHEAD)
        self._followers.add(queue)
        return queue

    async def follow(self, queue: asyncio.Queue[Told | Refusal | None]) -> AsyncGenerator[Told, None]:
        """Yield what it does, as events of E2B's; the first is its start.

        Raises:
            E2bError: it exceeded its time limit.
            UnknownSessionError: its sandbox has ended.
            See ``RunningCommand.events``.
        """
        try:
            yield {"start": {"pid": self.running.pid}}
            while not (self._is_over and queue.empty()):
                told = await queue.get()
                if isinstance(told, CellblockError | E2bError):
                    raise told
                if told is not None:
                    yield told
        finally:
            self._followers.discard(queue)
            while not queue.empty():  # the reader may wait for room in it
                queue.get_nowait()

    async def _read(self) -> None:
        try:
            async with contextlib.aclosing(self.running.events()) as events:
                async for event in events:
                    if isinstance(event, CommandFinished):
                        self._check(event.result)
                    await self._tell(told_of(event, is_terminal=self.is_terminal))
        except (CellblockError, E2bError) as error:
            await self._tell(error)
        finally:
            self._is_over = True  # a follower whose queue is full finds out once it has read all
            for queue in self._followers:
                with contextlib.suppress(asyncio.QueueFull):
                    queue.put_nowait(None)

    def _check(self, result: CommandResult) -> None:
        """Raise an error for an end that is none of the command's own.

        Raises:
            E2bError, UnknownSessionError: that is how it ended.
        """
        if result.outcome is Outcome.TIMEOUT:
            raise timed_out()
        if result.kernel_state == "dead":
            raise gone(self._sandbox_id)

    async def _tell(self, told: Told | Refusal) -> None:
        for queue in list(self._followers):
            if queue in self._followers:
                await queue.put(told)


def told_of(event: CommandEvent, *, is_terminal: bool) -> Told:
    """Return an event as E2B has it. Pure."""
    if isinstance(event, CommandOutput):
        name = "pty" if is_terminal else event.name
        return {"data": {name: base64.b64encode(event.data).decode()}}
    if isinstance(event, CommandFinished):
        return {"end": ended(event.result)}
    data = left_out(event.dropped_bytes).encode()
    return {"data": {"pty" if is_terminal else "stderr": base64.b64encode(data).decode()}}


def ended(result: CommandResult) -> Told:
    """Return how a command ended, as E2B has it. Pure."""
    code = -1 if result.exit_code is None else result.exit_code
    known = result.outcome in (Outcome.OK, Outcome.ERROR)
    status = f"exit status {code}" if known else f"{result.outcome} (exit status {code})"
    form: Told = {"exitCode": code, "exited": known, "status": status}
    return form if code == 0 else {**form, "error": status}


class LiveProcesses:
    """The commands of one sandbox that run. One that has ended is no longer found."""

    def __init__(self) -> None:
        self._processes: dict[int, LiveProcess] = {}

    @classmethod
    def of(cls, served: Served) -> LiveProcesses:
        """Return the commands of a session."""
        processes: LiveProcesses = served.attachments.setdefault(_PLACE, cls())
        return processes

    def add(self, process: LiveProcess) -> None:
        """Enter a command that was just started."""
        self._shrink()
        self._processes[process.running.pid] = process

    def listed(self) -> list[LiveProcess]:
        """Return the commands that run."""
        self._shrink()
        return list(self._processes.values())

    def find(self, pid: int = 0, tag: str = "") -> LiveProcess:
        """Return a command by its process id or its tag.

        Raises:
            E2bError: none of them runs.
        """
        for process in self.listed():
            if process.running.pid == pid or (tag and process.as_dict().get("tag") == tag):
                return process
        raise not_there(f"process with pid {pid} not found.")

    async def release(self) -> None:
        """Let go of all, so that the session may sleep. It ends them when it does."""
        for process in self.listed():
            await process.stop_reading()
        self._processes.clear()

    def _shrink(self) -> None:
        self._processes = {pid: process for pid, process in self._processes.items() if process.running.is_running}
