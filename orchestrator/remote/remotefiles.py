"""RemoteFileCalls: the part of ``RemoteKernelManager`` that is about a session's files."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Any

from orchestrator.errors import FileTransferError, InvalidInputError
from orchestrator.limits import MIB
from orchestrator.output.fileinfo import FileInfo
from orchestrator.remote.link import Query, Rereadable
from orchestrator.remote.remotesession import RemoteSession

_LARGEST = 1024 * MIB  # bytes of one file, unless the caller asks for more
_PIECE = MIB  # bytes that are read or sent at once


class RemoteFileCalls:
    """Reads and changes the files of a session: see ``FileCalls``."""

    async def put_file(self, session: RemoteSession, source: str | Path | bytes, destination: str) -> int:
        """See ``AgentKernelManager.put_file``. The source is a file of this machine."""
        data = source if isinstance(source, bytes) else _FileOfHere(Path(source))
        return await self.write_file(session, destination, data)

    async def get_file(
        self, session: RemoteSession, source: str, destination: str | Path, *, limit: int = _LARGEST
    ) -> int:
        """See ``AgentKernelManager.get_file``. The destination is a file of this machine."""
        path = Path(destination)
        partial, size = path.with_name(f".{secrets.token_hex(4)}.part"), 0
        try:
            with await asyncio.to_thread(open, partial, "xb") as file:
                async with contextlib.aclosing(self._read(session, source, 0, None, limit)) as pieces:
                    async for piece in pieces:
                        await asyncio.to_thread(file.write, piece)
                        size += len(piece)
            await asyncio.to_thread(partial.replace, path)
        except FileTransferError:
            raise
        except OSError as error:
            raise FileTransferError(
                f"{str(path)!r} cannot be written: {error.strerror or error}.", path=str(path)
            ) from error
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)
        return size

    async def write_file(
        self,
        session: RemoteSession,
        path: str,
        data: str | bytes | bytearray | memoryview | AsyncIterable[bytes],
    ) -> int:
        """See ``AgentKernelManager.write_file``."""
        if isinstance(data, str):
            data = data.encode()
        elif isinstance(data, bytearray | memoryview):
            data = bytes(data)
        with session.noticing_its_end():
            sent = await session.connection.upload(f"{session.path}/files/content", {"path": path}, data)
        return int(sent["bytes"])

    async def read_file(
        self, session: RemoteSession, path: str, *, offset: int = 0, length: int | None = None, limit: int = 100 * MIB
    ) -> bytes:
        """See ``AgentKernelManager.read_file``."""
        if offset < 0 or (length is not None and length < 0) or limit < 0:
            raise InvalidInputError("offset, length and limit must be 0 or more.")
        async with contextlib.aclosing(self._read(session, path, offset, length, limit)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def stat_file(self, session: RemoteSession, path: str, *, follow_links: bool = False) -> FileInfo:
        """See ``AgentKernelManager.stat_file``."""
        return _info(await self._files(session, "GET", "/stat", {"path": path, "follow_links": follow_links}))

    async def exists(self, session: RemoteSession, path: str) -> bool:
        """See ``AgentKernelManager.exists``."""
        try:
            await self.stat_file(session, path)
        except FileTransferError as error:
            if error.fault in ("missing", "not_a_folder"):
                return False
            raise
        return True

    async def list_files(
        self,
        session: RemoteSession,
        path: str = ".",
        *,
        recursive: bool = False,
        pattern: str = "",
        limit: int = 10_000,
    ) -> list[FileInfo]:
        """See ``AgentKernelManager.list_files``."""
        query: Query = {"path": path, "recursive": recursive, "pattern": pattern, "limit": limit}
        return [_info(form) for form in (await self._files(session, "GET", "", query))["files"]]

    async def make_dir(self, session: RemoteSession, path: str, *, parents: bool = True) -> bool:
        """See ``AgentKernelManager.make_dir``."""
        return bool((await self._files(session, "POST", "/folder", {"path": path, "parents": parents}))["made"])

    async def move(self, session: RemoteSession, source: str, destination: str) -> None:
        """See ``AgentKernelManager.move``."""
        await self._files(session, "POST", "/move", {"source": source, "destination": destination})

    async def remove(self, session: RemoteSession, path: str, *, recursive: bool = False) -> None:
        """See ``AgentKernelManager.remove``."""
        await self._files(session, "DELETE", "", {"path": path, "recursive": recursive})

    async def read_folder(self, session: RemoteSession, path: str = ".") -> AsyncGenerator[bytes, None]:
        """See ``AgentKernelManager.read_folder``."""
        with session.noticing_its_end():
            async with session.connection.download(f"{session.path}/files/archive", {"path": path}) as answer:
                async for piece in answer.aiter_bytes(_PIECE):
                    yield piece

    async def write_folder(self, session: RemoteSession, path: str, tar: bytes | AsyncIterable[bytes]) -> int:
        """See ``AgentKernelManager.write_folder``."""
        with session.noticing_its_end():
            sent = await session.connection.upload(f"{session.path}/files/archive", {"path": path}, tar)
        return int(sent["bytes"])

    async def _read(
        self, session: RemoteSession, path: str, offset: int, length: int | None, limit: int
    ) -> AsyncGenerator[bytes, None]:
        """Yield a part of a file.

        Raises:
            FileTransferError: it cannot be read, or is larger than ``limit``.
        """
        query: dict[str, str | int] = {"path": path, "offset": offset, "limit": limit}
        if length is not None:
            query["length"] = length
        with session.noticing_its_end():
            async with session.connection.download(f"{session.path}/files/content", query) as answer:
                async for piece in answer.aiter_bytes(_PIECE):
                    yield piece

    async def _files(self, session: RemoteSession, method: str, what: str, query: Query) -> dict[str, Any]:
        with session.noticing_its_end():
            return await session.connection.ask(method, f"{session.path}/files{what}", query=query)


class _FileOfHere(Rereadable):
    """The pieces of a file of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _pieces_of(self._path)


async def _pieces_of(path: Path) -> AsyncGenerator[bytes, None]:
    """Yield a file of this machine.

    Raises:
        FileTransferError: it cannot be read.
    """
    try:
        with await asyncio.to_thread(open, path, "rb") as file:
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece
    except OSError as error:
        raise FileTransferError(f"{str(path)!r} cannot be read: {error.strerror or error}.", path=str(path)) from error


def _info(form: dict[str, Any]) -> FileInfo:
    return FileInfo(**{name: form[name] for name in FileInfo.__slots__})
