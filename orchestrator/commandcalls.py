"""CommandCalls: the part of ``AgentKernelManager`` that runs commands beside cells."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial

from orchestrator.limits import KernelResourceLimits
from orchestrator.outcome import Outcome
from orchestrator.output.commandresult import CommandFinished, CommandResult
from orchestrator.sessions.commandhandle import CommandEvent, RunningCommand
from orchestrator.sessions.session import KernelSession
from orchestrator.sessions.sessioncommands import CommandRequest
from orchestrator.wiring.lifespan import Lifespan

_CANCELLED = 0.4  # seconds that a cancelled caller waits for its command: a kill took 0.01-0.1 s


class CommandCalls:
    """Runs commands in a session's sandbox, beside its cells: in ``/work``, as the session's user.

    Commands run while a cell runs, and several at once. Each is numbered, and is in the session's history and in the
    audit log. Its output has the limit of a cell's. It shares the sandbox's memory, CPU and processes with the cells.
    """

    _life: Lifespan
    resource_limits: KernelResourceLimits

    async def run_command(
        self,
        session: KernelSession,
        command: str | Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        timeout: float | None = None,
    ) -> CommandResult:
        """Run a command, and return its result, however it ended: a timeout is a result with ``timed_out``.

        The command is over when its process has ended and its output is complete. Processes that it has left in the
        background run on, and what they write later goes nowhere.

        Args:
            command: a line for ``bash``, or the program and its arguments.
            cwd: its working directory; relative to ``/work``.
            env: variables, added to the sandbox's.
            stdin: what it reads; text is sent as UTF-8.
            timeout: seconds; the policy's ``limits.command_time_s`` at most, and if None. After that, the command and
                all that it has started are killed, and the result has what had come.

        Raises:
            InvalidInputError: an argument cannot be used, such as a working directory that does not exist. Nothing was
                started. A program that does not exist is a result with exit code 127.
            CommandLimitError: as many commands run as may.
            KernelDiedError, SessionEndedError: there is no kernel to run it.
            StoreError, QuotaExceededError: its entry in the history cannot be written. Nothing was started.
        """
        async with self._life.in_use(session):
            request = CommandRequest(command=command, cwd=cwd, env=env, stdin=stdin, timeout=timeout)
            running = await session.commands.start(session.live_kernel(), request, self.resource_limits)
            async with _killed_if_left(session, running):
                return await running.wait()

    async def stream_command(
        self,
        session: KernelSession,
        command: str | Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        timeout: float | None = None,
    ) -> AsyncGenerator[CommandEvent, None]:
        """Run a command, and yield its output as it comes; the last event is ``CommandFinished`` with the result.

        A command waits for a slow consumer. To stop early, close the generator (``contextlib.aclosing``) or cancel the
        task: both kill the command.

        Raises:
            See ``run_command``.
        """
        async with self._life.in_use(session):
            request = CommandRequest(command=command, cwd=cwd, env=env, stdin=stdin, timeout=timeout, attached=True)
            running = await session.commands.start(session.live_kernel(), request, self.resource_limits)
            async with _killed_if_left(session, running), contextlib.aclosing(running.events()) as events:
                async for event in events:
                    if isinstance(event, CommandFinished):
                        break
                    yield event
                yield CommandFinished(await running.wait())

    async def start_command(
        self,
        session: KernelSession,
        command: str | Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        keep_stdin: bool = False,
        terminal: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> RunningCommand:
        """Start a command that outlives this call: a server, or a long build.

        It runs until it ends, its time limit, ``RunningCommand.kill``, or the end of its kernel. It does not keep an
        idle session awake, unless somebody waits for it; when a session goes to sleep, its next result says which
        commands ended.

        Args:
            keep_stdin: whether ``RunningCommand.write`` may write more input.
            terminal: rows and columns of a terminal for it, as interactive programs need; its input stays open.

        Raises:
            See ``run_command``.
        """
        async with self._life.in_use(session):
            request = CommandRequest(
                command=command,
                cwd=cwd,
                env=env,
                stdin=stdin,
                keeps_stdin=keep_stdin or terminal is not None,
                terminal=terminal,
                timeout=timeout,
                held=partial(self._life.held, session),
            )
            return await session.commands.start(session.live_kernel(), request, self.resource_limits)

    def list_commands(self, session: KernelSession) -> list[RunningCommand]:
        """Return the commands of the session that run, in the order of their numbers."""
        self._life.check_caller()
        return session.commands.running()


@contextlib.asynccontextmanager
async def _killed_if_left(session: KernelSession, running: RunningCommand) -> AsyncGenerator[None, None]:
    """Kill a command whose caller stops early, and wait a moment for its end."""
    try:
        yield
    finally:
        if running.is_running:
            session.commands.stop(running.number, Outcome.CANCELLED)
            await asyncio.wait({asyncio.ensure_future(running.settled())}, timeout=_CANCELLED)
