"""SessionCommands: the commands of one session, which run beside its cells.

Each has a number, and an entry in the history and in the audit log, as a cell has. The entry is committed while the
command starts, and closed when it is over.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from orchestrator.command import Command, CommandLimits
from orchestrator.errors import CommandLimitError, ManagerClosedError
from orchestrator.inputs import check_command
from orchestrator.kernel.commands import CommandSpec
from orchestrator.kernel.kernel import Kernel
from orchestrator.limits import KernelResourceLimits
from orchestrator.outcome import Outcome, Stop
from orchestrator.output.commandresult import CommandResult
from orchestrator.output.printable import printable
from orchestrator.sessions.commandhandle import RunningCommand

if TYPE_CHECKING:
    from orchestrator.sessions.session import KernelSession


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRequest:
    """What a caller asks for. See ``CommandCalls.run_command``.

    Attributes:
        stdin: what the command reads.
        keeps_stdin: whether ``RunningCommand.write`` writes more.
        terminal: rows and columns of a terminal for it.
        attached: whether the caller consumes its output from the start.
        by_operator: whether the policy's time limit does not count: the operator's does.
        held: keeps the session awake, as a context.
    """

    command: str | Sequence[str]
    cwd: str = ""
    env: Mapping[str, str] | None = None
    stdin: bytes | str = b""
    keeps_stdin: bool = False
    timeout: float | None = None
    terminal: tuple[int, int] | None = None
    attached: bool = False
    by_operator: bool = False
    held: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def shell(self) -> bool:
        """Whether a shell runs it."""
        return isinstance(self.command, str)

    @property
    def first_input(self) -> bytes:
        """What it reads from the start."""
        return self.stdin.encode() if isinstance(self.stdin, str) else bytes(self.stdin)


_SHELL = ("/bin/bash", "-c")
_WORK = PurePosixPath("/work")
_SHOWN = 60  # characters of a command in a notice


class SessionCommands:
    """The commands that run in a session's kernel."""

    def __init__(self, session: KernelSession) -> None:
        self._session = session
        self._running: dict[int, tuple[Command, RunningCommand]] = {}
        self._starting = 0

    def running(self) -> list[RunningCommand]:
        """Return the commands that run, in the order of their numbers."""
        return [handle for _, handle in self._running.values()]

    def describe(self) -> list[str]:
        """Return the running commands, each as its number and the beginning of its text."""
        return [f"#{number} {shown(command.command)}" for number, (command, _) in self._running.items()]

    def stop(self, number: int, why: Stop) -> None:
        """Kill a command, if it runs."""
        if number in self._running:
            self._running[number][0].stop(why)

    async def start(self, kernel: Kernel, request: CommandRequest, limits: KernelResourceLimits) -> RunningCommand:
        """Start a command, once its entry is in the history.

        Raises:
            InvalidInputError: an argument cannot be used. Nothing runs.
            CommandLimitError: as many commands run as may.
            StoreError: its entry cannot be written. Nothing runs.
            KernelDiedError: the kernel is gone.
        """
        session = self._session
        argv = check_command(request.command, request.cwd, request.env, request.timeout)
        if session.closing:
            raise ManagerClosedError("the manager shuts down; the command has not run.")
        if len(self._running) + self._starting >= session.policy.limits.commands:
            raise CommandLimitError(
                "this session runs as many commands as it may; the new one was not started.",
                limit=session.policy.limits.commands,
                remedy="Wait for one, kill one, or raise [limits] commands in the policy.",
            )
        self._starting += 1
        try:
            number = await session.begin_command(argv, kernel, shell=request.shell)
            return await self._started(self._command(number, argv, kernel, request, limits), kernel, request)
        finally:
            self._starting -= 1

    def _command(
        self,
        number: int,
        argv: tuple[str, ...],
        kernel: Kernel,
        request: CommandRequest,
        limits: KernelResourceLimits,
    ) -> Command:
        policy = self._session.policy
        spec = CommandSpec(
            argv=(*_SHELL, *argv) if request.shell else argv,
            cwd=str(_WORK / request.cwd),
            env=dict(request.env or {}),
            input=request.first_input,
            keeps_stdin=request.keeps_stdin,
            terminal=request.terminal,
        )
        most = math.inf if request.by_operator else policy.limits.command_time_s
        command_limits = CommandLimits(
            time_s=most if request.timeout is None else min(request.timeout, most),
            output_bytes=limits.max_output_bytes,
            stops=policy.output.past_limit == "stop" and request.terminal is None and not request.by_operator,
            streams_all=request.by_operator or request.terminal is not None,
        )
        return Command(
            kernel,
            spec,
            command_limits,
            number=number,
            command=argv,
            shell=request.shell,
            attached=request.attached,
        )

    async def _started(self, command: Command, kernel: Kernel, request: CommandRequest) -> RunningCommand:
        settled = asyncio.create_task(self._settle(command, kernel))
        handle = RunningCommand(command, settled, request.held)
        self._running[command.number] = (command, handle)
        try:
            await command.start()
        except BaseException:
            command.stop(Outcome.CANCELLED)
            if not kernel.is_alive or not command.was_sent:
                command.give_up()
            if command.is_over:
                await asyncio.wait({settled})
            raise
        finally:
            self._note_start(command, kernel)
        handle.pid = command.pid
        return handle

    async def _settle(self, command: Command, kernel: Kernel) -> CommandResult:
        """Wait until a command is over, and close its entry."""
        await command.ended()
        result = await command.result()
        self._running.pop(command.number, None)
        self._session.touch()
        if self._session.kernel is kernel and (notices := self._session.take_notices()):
            result = replace(result, warnings=(*result.warnings, *notices))
        self._session.end_command(command.number, result)
        self._note_end(result, kernel)
        return result

    def _note_start(self, command: Command, kernel: Kernel) -> None:
        text = json.dumps(command.command)
        details: dict[str, Any] = {"command_sha256": hashlib.sha256(text.encode()).hexdigest()}
        if self._session.policy.audit.code == "full":
            details["command"] = list(command.command)
        self._session.note(
            kernel, "command.started", command_number=command.number, pid=command.pid, **details, **kernel.description()
        )

    def _note_end(self, result: CommandResult, kernel: Kernel) -> None:
        self._session.note(
            kernel,
            "command.ended",
            command_number=result.number,
            outcome=result.outcome,
            exit_code=result.exit_code,
            duration_s=round(result.duration_s, 6),
            evidence=result.evidence.as_dict(),
            truncated=None if result.truncated is None else result.truncated.as_dict(),
        )


def shown(command: Sequence[str]) -> str:
    """Return the beginning of a command, on one printable line."""
    return printable(" ".join(" ".join(command).split()), _SHOWN)
