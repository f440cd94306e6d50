"""RemoteCommand: a command that was started on a server, and that its client may watch, feed and stop."""

from __future__ import annotations

import asyncio
import base64
import signal as signals
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from orchestrator.output.commandresult import CommandFinished, CommandOutput, CommandResult
from orchestrator.output.events import OutputDropped
from orchestrator.remote.remotesession import RemoteSession
from orchestrator.sessions.commandhandle import CommandEvent

_WAIT = 50.0  # seconds that one request waits for a command's end
_READERS: dict[str, Callable[[Mapping[str, Any]], CommandEvent]] = {
    "command_output": CommandOutput.from_dict,
    "output_dropped": OutputDropped.from_dict,
    "command_finished": CommandFinished.from_dict,
}


def command_event(form: Mapping[str, Any]) -> CommandEvent:
    """Return the event that a server described.

    Raises:
        ValueError: a field is missing or invalid.
    """
    return _READERS[form["type"]](form)


class RemoteCommand:
    """A command of a session on a server. It runs on if nobody uses this object.

    Attributes:
        number, pid, command, started_at: see ``RunningCommand``.
    """

    def __init__(self, session: RemoteSession, form: Mapping[str, Any]) -> None:
        self._session = session
        self._link = session.connection.staying()
        self._result: CommandResult | None = None
        self.number: int = form["number"]
        self.pid: int = form["pid"]
        self.command: tuple[str, ...] = tuple(form["command"])
        self.started_at: float = form["started_at"]
        self._shell: bool = form["shell"]

    def __repr__(self) -> str:
        return f"<RemoteCommand #{self.number} {' '.join(self.command)[:60]!r}>"

    @property
    def id(self) -> int:
        """Its number in the session."""
        return self.number

    @property
    def is_running(self) -> bool:
        """Whether its end has not been seen yet: by ``wait`` or ``events``."""
        return self._result is None

    async def wait(self, timeout: float | None = None) -> CommandResult:
        """See ``RunningCommand.wait``."""
        async with asyncio.timeout(timeout):
            while self._result is None:
                found = await self._link.ask("GET", self._path, query={"wait_s": _WAIT})
                if found["result"] is not None:
                    self._result = CommandResult.from_dict(found["result"])
        return self._result

    async def events(self) -> AsyncGenerator[CommandEvent, None]:
        """See ``RunningCommand.events``."""
        async with self._link.events("GET", f"{self._path}/events") as events:
            async for _, form in events:
                event = command_event(form)
                if isinstance(event, CommandFinished):
                    self._result = event.result
                yield event

    async def kill(self, signal: int | str = signals.SIGKILL) -> bool:
        """See ``RunningCommand.kill``."""
        name = signal if isinstance(signal, str) else int(signal)
        return bool((await self._ask("signal", {"signal": name}))["was_running"])

    async def write(self, data: bytes | str) -> bool:
        """See ``RunningCommand.write``."""
        encoded = base64.b64encode(data.encode() if isinstance(data, str) else bytes(data)).decode()
        return bool((await self._ask("input", {"data_base64": encoded}))["taken"])

    async def close_stdin(self) -> None:
        """See ``RunningCommand.close_stdin``."""
        await self._ask("input", {"last": True})

    async def resize(self, rows: int, columns: int) -> None:
        """See ``RunningCommand.resize``."""
        await self._ask("size", {"rows": rows, "columns": columns})

    @property
    def _path(self) -> str:
        return f"{self._session.path}/commands/{self.number}"

    async def _ask(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._link.ask("POST", f"{self._path}/{what}", body)
