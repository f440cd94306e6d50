"""FileCalls: the part of ``AgentKernelManager`` that is about a session's files."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable
from pathlib import Path

from orchestrator.errors import FileTransferError, InvalidInputError
from orchestrator.foldertransfer import pack, unpack
from orchestrator.kernel import files, transfer
from orchestrator.limits import MIB
from orchestrator.output.fileinfo import FileInfo
from orchestrator.sessions.session import KernelSession
from orchestrator.wiring.lifespan import Lifespan

_FARTHEST = 2**53  # bytes: from 2**63 on no file has an offset, and the kernel would not answer
_LARGEST = 1024 * MIB  # bytes of one file, unless the caller asks for more


class FileCalls:
    """Reads and changes the files of a session. It works also while a cell runs.

    A path is absolute, or relative to the working directory ``/work``, also after a cell changed its working directory.
    Its name may be any Unicode text; bytes that are no UTF-8 are lone surrogates, as ``os.fsdecode`` returns them.

    All methods raise KernelDiedError or SessionEndedError if there is no kernel.
    """

    _life: Lifespan

    async def put_file(self, session: KernelSession, source: str | Path | bytes, destination: str) -> int:
        """Copy a file of the host, or bytes, into the session's sandbox. Return how many bytes it has.

        Args:
            destination: path inside; missing folders are made.

        Raises:
            FileTransferError: the source cannot be read, or it does not fit; the sandbox is unchanged.
        """
        return await self._put(session, source if isinstance(source, bytes) else Path(source), destination)

    async def get_file(
        self, session: KernelSession, source: str, destination: str | Path, *, limit: int = _LARGEST
    ) -> int:
        """Copy a file of the session's sandbox to the host. Return how many bytes it has.

        Args:
            source: path inside.
            limit: the largest number of bytes to copy.

        Raises:
            FileTransferError: it cannot be read or written, or exceeds the limit; the destination is unchanged.
        """
        async with self._life.in_use(session):
            kernel = session.live_kernel()
            taken = await transfer.get_file(kernel, source, Path(destination), limit)
            session.note(kernel, "file.out", path=source, bytes=taken.size, sha256=taken.sha256)
        return taken.size

    async def write_file(
        self,
        session: KernelSession,
        path: str,
        data: str | bytes | bytearray | memoryview | AsyncIterable[bytes],
    ) -> int:
        """Write a file, whole or not at all. Return how many bytes it has.

        A file that is replaced keeps its mode. Where a link is, what it leads to is replaced. Missing folders are made.

        Args:
            data: the content; text is written as UTF-8.

        Raises:
            FileTransferError: it cannot be written, or does not fit; the sandbox is unchanged.
        """
        return await self._put(session, data.encode() if isinstance(data, str) else data, path)

    async def read_file(
        self, session: KernelSession, path: str, *, offset: int = 0, length: int | None = None, limit: int = 100 * MIB
    ) -> bytes:
        """Return the content of a file. A link is followed, inside the sandbox.

        Args:
            offset: where to begin, in bytes.
            length: bytes to read at most; None: to the end.
            limit: the largest number of bytes to return.

        Raises:
            InvalidInputError: the offset, the length or the limit is below 0, or the offset is above 2**53.
            FileTransferError: it cannot be read, or is larger than ``limit``.
        """
        if not 0 <= offset <= _FARTHEST or (length is not None and length < 0) or limit < 0:
            raise InvalidInputError("offset, length and limit must be 0 or more, and the offset at most 2**53.")
        async with self._life.in_use(session):
            kernel = session.live_kernel()
            found = await transfer.read_file(kernel, path, limit, offset=offset, length=length)
            session.note(kernel, "file.out", path=path, bytes=len(found))
        return found

    async def stat_file(self, session: KernelSession, path: str, *, follow_links: bool = False) -> FileInfo:
        """Return what a path is: a file, a folder, a link, …, with its size and times.

        Args:
            follow_links: whether to look at what a link leads to.

        Raises:
            FileTransferError: there is no such file ("missing"), or it cannot be looked at.
        """
        async with self._life.in_use(session):
            return await files.stat(session.live_kernel(), path, follow=follow_links)

    async def exists(self, session: KernelSession, path: str) -> bool:
        """Return whether there is a file, a folder or a link of this path.

        Raises:
            FileTransferError: it cannot be looked at.
        """
        try:
            await self.stat_file(session, path)
        except FileTransferError as error:
            if error.fault in ("missing", "not_a_folder"):
                return False
            raise
        return True

    async def list_files(
        self,
        session: KernelSession,
        path: str = ".",
        *,
        recursive: bool = False,
        pattern: str = "",
        limit: int = 10_000,
    ) -> list[FileInfo]:
        """Return the files in a folder, in the order of their paths. Links are listed as links, and not followed.

        Args:
            recursive: whether to list the folders in it too.
            pattern: which files: "*.py" is for names, in any folder; "data/**/*.csv", with a slash, for the whole path
                below ``path``. "": all.
            limit: the most files to return; at most 100,000.

        Raises:
            InvalidInputError: the limit is not from 1 to 100,000.
            FileTransferError: it cannot be listed ("missing", "not_a_folder"), or has more files ("too_large").
        """
        if not 1 <= limit <= files.MOST_LISTED:
            raise InvalidInputError(f"the limit must be from 1 to {files.MOST_LISTED:,}.")
        async with self._life.in_use(session):
            return await files.list_folder(
                session.live_kernel(), path, recursive=recursive or "/" in pattern, pattern=pattern, most=limit
            )

    async def make_dir(self, session: KernelSession, path: str, *, parents: bool = True) -> bool:
        """Make a folder. Return whether it is new.

        Args:
            parents: whether to make the folders above it too.

        Raises:
            FileTransferError: it cannot be made ("exists": a file has this path).
        """
        async with self._life.in_use(session):
            kernel = session.live_kernel()
            made = await files.make_folder(kernel, path, parents=parents)
            session.note(kernel, "file.folder", path=path)
        return made

    async def move(self, session: KernelSession, source: str, destination: str) -> None:
        """Move or rename a file or a folder. A file replaces a file. Missing folders are made.

        Raises:
            FileTransferError: it cannot be moved ("missing", "exists", "not_empty", "is_folder").
        """
        async with self._life.in_use(session):
            kernel = session.live_kernel()
            await files.move(kernel, source, destination)
            session.note(kernel, "file.moved", path=source, to=destination)

    async def remove(self, session: KernelSession, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link, or a folder.

        Args:
            recursive: whether to remove a folder that is not empty.

        Raises:
            FileTransferError: it cannot be removed ("missing", "not_empty", "permission").
        """
        async with self._life.in_use(session):
            kernel = session.live_kernel()
            await files.remove(kernel, path, recursive=recursive)
            session.note(kernel, "file.removed", path=path)

    async def read_folder(self, session: KernelSession, path: str = ".") -> AsyncGenerator[bytes, None]:
        """Yield a folder with all that it has as a tar, in pieces.

        The tar comes from the sandbox, so it may say anything: extract it with ``tarfile``'s filter "data", or not at
        all.

        Raises:
            FileTransferError: it cannot be read ("missing", "not_a_folder"), or takes longer than 10 minutes.
        """
        async with self._life.in_use(session):
            kernel, size = session.live_kernel(), 0
            async with contextlib.aclosing(pack(kernel, path)) as pieces:
                async for piece in pieces:
                    size += len(piece)
                    yield piece
            session.note(kernel, "folder.out", path=path, bytes=size)

    async def write_folder(self, session: KernelSession, path: str, tar: bytes | AsyncIterable[bytes]) -> int:
        """Extract a tar into a folder, which is made if it is missing. Return the bytes of the tar.

        Raises:
            FileTransferError: it cannot be written, or is no tar; a part of it may be there.
        """
        async with self._life.in_use(session):
            kernel = session.live_kernel()
            size = await unpack(kernel, path, _one(tar) if isinstance(tar, bytes) else tar)
            session.note(kernel, "folder.in", path=path, bytes=size)
        return size

    async def _put(self, session: KernelSession, source: transfer.Source, destination: str) -> int:
        async with self._life.in_use(session):
            kernel = session.live_kernel()
            sent = await transfer.put_file(kernel, source, destination)
            session.note_file_in(destination)
            session.note(kernel, "file.in", path=destination, bytes=sent.size, sha256=sent.sha256)
        return sent.size


async def _one(data: bytes) -> AsyncGenerator[bytes, None]:
    yield data
