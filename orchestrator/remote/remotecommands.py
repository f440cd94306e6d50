"""RemoteCommandCalls: the part of ``RemoteKernelManager`` that runs commands."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from orchestrator.errors import CellblockError
from orchestrator.inputs import check_command
from orchestrator.output.commandresult import CommandResult
from orchestrator.remote.remotecommand import RemoteCommand, command_event
from orchestrator.remote.remotesession import RemoteSession
from orchestrator.sessions.commandhandle import CommandEvent

_LARGE = 1024 * 1024  # bytes of input that one request carries


class RemoteCommandCalls:
    """Runs commands in a session's sandbox, beside its cells."""

    async def run_command(
        self,
        session: RemoteSession,
        command: str | Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        timeout: float | None = None,
    ) -> CommandResult:
        """See ``AgentKernelManager.run_command``."""
        if len(stdin) > _LARGE:
            return await self._run_fed(session, _body(command, cwd, env, b"", timeout), stdin)
        return CommandResult.from_dict(await self._post(session, _body(command, cwd, env, stdin, timeout)))

    async def _run_fed(self, session: RemoteSession, body: Mapping[str, Any], stdin: bytes | str) -> CommandResult:
        """Run a command whose input is too large for one request."""
        form = await self._post(session, {**body, "background": True, "keep_stdin": True})
        running = RemoteCommand(session, form)
        feeding = asyncio.create_task(_feed(running, stdin.encode() if isinstance(stdin, str) else bytes(stdin)))
        try:
            return await running.wait()
        finally:
            feeding.cancel()
            await asyncio.wait({feeding})
            if running.is_running:
                await running.kill()

    async def stream_command(
        self,
        session: RemoteSession,
        command: str | Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        timeout: float | None = None,
    ) -> AsyncGenerator[CommandEvent, None]:
        """See ``AgentKernelManager.stream_command``."""
        body = _body(command, cwd, env, stdin, timeout)
        with session.noticing_its_end():
            async with session.connection.events("POST", f"{session.path}/commands", body) as events:
                async for _, form in events:
                    yield command_event(form)

    async def start_command(
        self,
        session: RemoteSession,
        command: str | Sequence[str],
        *,
        cwd: str = "",
        env: Mapping[str, str] | None = None,
        stdin: bytes | str = b"",
        keep_stdin: bool = False,
        terminal: tuple[int, int] | None = None,
        timeout: float | None = None,
    ) -> RemoteCommand:
        """See ``AgentKernelManager.start_command``."""
        body = _body(command, cwd, env, stdin, timeout)
        more = {"background": True, "keep_stdin": keep_stdin, "terminal": None if terminal is None else list(terminal)}
        return RemoteCommand(session, await self._post(session, {**body, **more}))

    async def list_commands(self, session: RemoteSession) -> list[RemoteCommand]:
        """See ``AgentKernelManager.list_commands``. Those that were not started in the background cannot be watched."""
        with session.noticing_its_end():
            found = await session.connection.ask("GET", f"{session.path}/commands")
        return [RemoteCommand(session, form) for form in found["commands"]]

    async def _post(self, session: RemoteSession, body: Mapping[str, Any]) -> dict[str, Any]:
        with session.noticing_its_end():
            return await session.connection.ask("POST", f"{session.path}/commands", body)


async def _feed(running: RemoteCommand, data: bytes) -> None:
    """Write a command's input, as it takes it, and end it. A command that ends before has all that it wanted."""
    with contextlib.suppress(CellblockError):
        for start in range(0, len(data), _LARGE):
            if not await running.write(data[start : start + _LARGE]):
                return
        await running.close_stdin()


def _body(
    command: str | Sequence[str],
    cwd: str,
    env: Mapping[str, str] | None,
    stdin: bytes | str,
    timeout: float | None,
) -> dict[str, Any]:
    """Return the request for a command.

    Raises:
        InvalidInputError: see ``AgentKernelManager.run_command``. Nothing was sent.
    """
    argv = check_command(command, cwd, env, timeout)
    data = stdin.encode() if isinstance(stdin, str) else bytes(stdin)
    return {
        "command": command if isinstance(command, str) else list(argv),
        "cwd": cwd,
        "env": dict(env or {}),
        "stdin_base64": base64.b64encode(data).decode(),
        "timeout": None if timeout is None else min(float(timeout), 7 * 86400.0),
    }
