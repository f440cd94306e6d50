"""The control socket: lets `cellblock ps` and `cellblock top` inspect a running manager and stop its cells and kernels.

It is a unix socket in the instance's own folder, which only its user can enter; no sandbox can reach it. Each
connection carries one request and one reply, each a line of JSON. The kernel names the user and the process at both
ends of a connection: a server records who asked, and a client asks only the user that the socket file belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pwd
import re
import socket
import stat
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.container.folders import instance_folders, instance_of
from orchestrator.errors import CellblockError, SettingsError
from orchestrator.limits import MIB

_log = logging.getLogger(__name__)
_NAME = "control.sock"
_LONGEST = 16 * MIB  # the longest line of this user's own managers, in bytes
_LONGEST_OF_OTHERS = 2 * MIB  # bytes; root asks managers of users that it does not trust
_LONGEST_LIST = 4 * MIB  # characters of the list of a namespace's sockets, which a sandbox can make long
_MOST_OF_OTHERS = 64  # sockets of one other user that root asks
_CREDENTIALS = struct.Struct("3i")  # of SO_PEERCRED: process id, user id, group id
_LISTENING = re.compile(r"[0-9a-f]+: \d+ \d+ 00010000 \d+ 01 +\d+ (/.{1,107}/i-[0-9a-f]{12}/control\.sock)")
_TIMEOUT = 5.0  # seconds to receive a request, and seconds to send its reply

Command = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Conversation = Callable[[dict[str, Any], asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a connection, as the kernel reports it."""

    uid: int
    pid: int

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Return who was at the other end when the connection was made."""
        pid, uid, _gid = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        return cls(uid, pid)

    def as_dict(self) -> dict[str, Any]:
        return {"uid": self.uid, "user": user_name(self.uid), "pid": self.pid}


def user_name(uid: int) -> str:
    """Return the name of a user of this host, or its number if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@dataclass(frozen=True, slots=True)
class ControlClient:
    """Sends requests to the control socket of one instance.

    Attributes:
        instance: the instance's id.
        path: the socket.
        uid: the user to whom the socket file belongs. Only a manager of this user is asked.
    """

    instance: str
    path: Path
    uid: int = field(default_factory=os.geteuid)

    @property
    def key(self) -> str:
        """A name that no other instance has."""
        return str(self.path)

    @property
    def place(self) -> str:
        """The user to whom the instance belongs."""
        return user_name(self.uid)

    def __str__(self) -> str:
        return f"instance {self.instance} of user {self.place}"

    @contextlib.asynccontextmanager
    async def talk(
        self, request: dict[str, Any], timeout: float
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Send a request, and yield the connection.

        Raises:
            OSError, TimeoutError: the manager cannot be reached, or is not one of ``uid``.
        """
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(self.path, limit=_LONGEST_OF_OTHERS)
        try:
            if Peer.of(writer.get_extra_info("socket")).uid != self.uid:
                raise ConnectionRefusedError("the socket is not the manager's")
            writer.write(json.dumps(request).encode() + b"\n")
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """Send a request and return the reply; None if none comes within ``timeout`` seconds (it ended, or hangs).

        None too if the process that listens is not one of ``uid``: nothing is sent to it.
        """
        longest = _LONGEST if self.uid == os.geteuid() else _LONGEST_OF_OTHERS
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(self.path, limit=longest)
                try:
                    if Peer.of(writer.get_extra_info("socket")).uid != self.uid:
                        return None
                    writer.write(json.dumps(request).encode() + b"\n")
                    await writer.drain()
                    reply = json.loads(await reader.readline() or b"null")
                finally:
                    writer.transport.abort()  # not closed, which would wait for a peer that does not read
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError, ValueError, RecursionError):
            return None
        return reply if isinstance(reply, dict) else None


def control_clients(state: Path) -> list[ControlClient]:
    """Return a client for each instance that has a control socket in its folder in ``state``."""
    found = [folder / _NAME for folder in instance_folders(state)]
    return [client for path in found if (client := _client(path)) is not None]


def control_clients_of_host(state: Path, *, only: bool) -> list[ControlClient]:
    """Return a client for each instance that this user may ask: root may ask those of every user.

    Besides ``state``, looks at the kernel's lists of listening sockets: that of this network namespace, and as root
    those of all others. A manager in a container is found if its state folder has the same path here, as it must have
    for the engine.

    Args:
        state: this user's state folder.
        only: leave out this user's instances with other state folders.
    """
    me = os.geteuid()
    found = {client.path: client for client in control_clients(state)}
    counts: Counter[int] = Counter()
    for path in _listening():
        client = _client(path)
        if client is None or client.path in found or (client.uid != me and me != 0) or (client.uid == me and only):
            continue
        counts[client.uid] += 1
        if client.uid == me or counts[client.uid] <= _MOST_OF_OTHERS:
            found[path] = client
    return list(found.values())


def _listening() -> list[Path]:
    found: dict[Path, None] = {}
    for process in _one_of_each_namespace():
        try:
            with (process / "net/unix").open(errors="replace") as file:
                lines = file.read(_LONGEST_LIST).splitlines()
        except OSError:
            continue
        found |= {Path(match[1]): None for line in lines if (match := _LISTENING.fullmatch(line))}
    return list(found)


def _one_of_each_namespace() -> list[Path]:
    """Return the /proc folder of this process, and as root one of a process in each other network namespace."""
    namespaces: dict[int, Path] = {}
    every = Path("/proc").glob("[0-9]*") if os.geteuid() == 0 else ()
    for process in (Path("/proc/self"), *every):
        with contextlib.suppress(OSError):  # it has ended
            namespaces.setdefault((process / "ns/net").stat().st_ino, process)
    return list(namespaces.values())


def _client(path: Path) -> ControlClient | None:
    """Return the client of a socket, or None if the path is anything else, or in a folder of another user."""
    try:
        found, folder = path.lstat(), path.parent.lstat()
    except OSError:
        return None
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(folder.st_mode) or found.st_uid != folder.st_uid:
        return None
    return ControlClient(instance_of(path.parent), path, found.st_uid)


class ControlSocket:
    """Serves commands: a request ``{"do": NAME, …}`` is answered with what the command of that name returns.

    A command gets the request with "operator": the user id, user name and process id of who asked.

    Args:
        commands: the commands by name. If one raises ValueError, the reply is ``{"error": MESSAGE}``.
        conversations: commands that use the connection for more than one reply; each closes its own waits.
    """

    def __init__(self, commands: dict[str, Command], conversations: dict[str, Conversation] | None = None) -> None:
        self._commands = commands
        self._conversations = conversations or {}
        self._talking: set[asyncio.Task[None]] = set()
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
        """Stop serving, and end the conversations. Idempotent."""
        if self._server is not None:
            self._server.close()
        for task in self._talking:
            task.cancel()
        await asyncio.gather(*self._talking, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT):
                line = await reader.readline()
            request = self._read(line, Peer.of(writer.get_extra_info("socket")))
            talk = self._conversations.get(str(request.get("do")))
            if talk is None or "error" in request:
                await _reply(writer, await self._answer(request))
            else:
                await self._talk(talk, request, reader, writer)
        except (OSError, TimeoutError, ValueError) as error:
            _log.debug("a request to the control socket failed: %s", error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _talk(
        self,
        talk: Conversation,
        request: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        task = asyncio.ensure_future(talk(request, reader, writer))
        self._talking.add(task)
        try:
            await asyncio.wait({task})
            if not task.cancelled():  # by ``close``
                task.result()
        except (ValueError, CellblockError) as error:
            await _reply(writer, {"error": str(error)})
        finally:
            task.cancel()
            self._talking.discard(task)

    def _read(self, line: bytes, peer: Peer) -> dict[str, Any]:
        """Return the request of a line, with who asks; or {"error": MESSAGE}."""
        if peer.uid not in (0, os.geteuid()):
            return {"error": f"uid {peer.uid} may not operate the kernels of uid {os.geteuid()}."}
        names = (*self._commands, *self._conversations)
        try:
            request = json.loads(line)
            if request["do"] in names:
                return {**{key: value for key, value in request.items() if key != "error"}, "operator": peer.as_dict()}
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            pass
        return {"error": f'a request is a line of JSON, {{"do": NAME}}, with one of: {", ".join(names)}'}

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if "error" in request:
            return request
        try:
            return await self._commands[request["do"]](request)
        except ValueError as error:
            return {"error": str(error)}


async def _reply(writer: asyncio.StreamWriter, reply: dict[str, Any]) -> None:
    async with asyncio.timeout(_TIMEOUT):
        writer.write(json.dumps(reply).encode() + b"\n")
        await writer.drain()
