"""The control socket: lets `cellblock ps` and `cellblock top` inspect a running manager and stop its cells and kernels.

It is a unix socket in the instance's own folder, which only its user can enter; no sandbox can reach it. Each
connection carries one request and one reply, each a line of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.container.folders import instance_folders, instance_of
from orchestrator.errors import SettingsError
from orchestrator.limits import MIB

_log = logging.getLogger(__name__)
_NAME = "control.sock"
_LONGEST = 16 * MIB  # the longest line, in bytes
_TIMEOUT = 5.0  # seconds to receive a request, and seconds to send its reply

Command = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class ControlClient:
    """Sends requests to the control socket of one instance.

    Attributes:
        instance: the instance's id.
        path: the socket.
    """

    instance: str
    path: Path

    async def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """Send a request and return the reply; None if none comes within ``timeout`` seconds (it ended, or hangs)."""
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(self.path, limit=_LONGEST)
                try:
                    writer.write(json.dumps(request).encode() + b"\n")
                    await writer.drain()
                    reply = json.loads(await reader.readline() or b"null")
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError):
            return None
        return reply if isinstance(reply, dict) else None


def control_clients(state: Path) -> list[ControlClient]:
    """Return a client for each instance that has a control socket in its folder in ``state``."""
    return [
        ControlClient(instance_of(folder), folder / _NAME)
        for folder in instance_folders(state)
        if (folder / _NAME).exists()
    ]


class ControlSocket:
    """Serves commands: a request ``{"do": NAME, …}`` is answered with what the command of that name returns.

    Args:
        commands: the commands by name. If one raises ValueError, the reply is ``{"error": MESSAGE}``.
    """

    def __init__(self, commands: dict[str, Command]) -> None:
        self._commands = commands
        self._server: asyncio.Server | None = None

    async def listen(self, folder: Path) -> None:
        """Create the socket in ``folder`` and start to serve requests.

        Raises:
            SettingsError: the socket cannot be created.
        """
        path = folder / _NAME
        try:
            self._server = await asyncio.start_unix_server(self._serve, path, limit=_LONGEST)
        except OSError as error:
            raise SettingsError(
                f"the control socket {path} cannot be created: {error}.",
                remedy="Set CELLBLOCK_STATE_DIR to a folder with a shorter path and free space.",
            ) from error
        path.chmod(0o600)

    async def close(self) -> None:
        """Stop serving. Idempotent."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                line = await reader.readline()
            reply = await self._answer(line)
            async with asyncio.timeout(_TIMEOUT):
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        except (OSError, TimeoutError, ValueError) as error:
            _log.debug("a request to the control socket failed: %s", error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = self._commands[request["do"]]
        except (ValueError, RecursionError, KeyError, TypeError):
            return {"error": f'a request is a line of JSON, {{"do": NAME}}, with one of: {", ".join(self._commands)}'}
        try:
            return await command(request)
        except ValueError as error:
            return {"error": str(error)}
