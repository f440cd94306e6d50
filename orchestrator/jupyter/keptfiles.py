"""KeptFiles: the files of ``/work`` between the two processes of a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.container.lockfile import LockFile
from orchestrator.errors import CellblockError, FileTransferError, KernelStartError, StoreError
from orchestrator.foldertransfer import largest_tar
from orchestrator.limits import MIB
from orchestrator.manager import AgentKernelManager
from orchestrator.sessions.session import KernelSession

_log = logging.getLogger(__name__)
_WORK = "/work"
_FORGOTTEN = 3600.0  # seconds after which nobody continues a restart
_POLL = 0.05  # seconds


class KeptFiles:
    """The files of one kernel, as a tar that the host never opens. A sandbox may claim any size, so its tar is bounded.

    Args:
        folder: this user's alone; it is made if it is missing.
        name: of this kernel, and of no other.
        work_mb: the size of ``/work``.
    """

    def __init__(self, folder: Path, name: str, work_mb: int) -> None:
        self._folder = folder
        self._tar, self._lock = folder / f"{name}.tar", folder / f"{name}.lock"
        self._most = largest_tar(work_mb)

    @contextlib.asynccontextmanager
    async def held(self, timeout: float) -> AsyncIterator[None]:
        """Keep other processes of this kernel waiting. One that still ends is waited for.

        Raises:
            KernelStartError: the other one has not ended in time.
            StoreError: the folder cannot be written.
        """
        deadline = time.monotonic() + timeout
        try:
            self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            while (lock := await asyncio.to_thread(LockFile.take, self._lock)) is None:
                if time.monotonic() > deadline:
                    raise KernelStartError("an earlier kernel of this connection file has not ended.", cause="host")
                await asyncio.sleep(_POLL)
            await asyncio.to_thread(self._remove_forgotten)
        except OSError as error:
            raise StoreError(f"{self._lock} cannot be written: {error.strerror}.") from error
        try:
            yield
        finally:
            lock.release()

    async def save(self, manager: AgentKernelManager, session: KernelSession) -> None:
        """Keep the session's files for the next process. Of files that cannot be kept, an empty tar tells."""
        try:
            with await asyncio.to_thread(_open_private, self._tar) as file:
                await self._copy(manager, session, file)
        except (CellblockError, OSError) as error:
            with contextlib.suppress(OSError):
                self._tar.write_bytes(b"")
            _log.warning("the files of %s are lost in the restart: %s", _WORK, error)

    async def load(self, manager: AgentKernelManager, session: KernelSession) -> None:
        """Give the session the files that ``save`` kept, once."""
        try:
            with self._tar.open("rb") as file:
                self._tar.unlink()
                if os.fstat(file.fileno()).st_size:
                    await manager.write_folder(session, _WORK, _pieces(file))
                else:
                    session.notify(f"the files of {_WORK} could not be kept for the restart, and are gone.")
        except FileNotFoundError:
            return
        except FileTransferError as error:
            session.notify(f"the files of {_WORK} are not all here after the restart: {error.message}")

    async def _copy(self, manager: AgentKernelManager, session: KernelSession, file: BinaryIO) -> None:
        size = 0
        async with contextlib.aclosing(manager.read_folder(session, _WORK)) as pieces:
            async for piece in pieces:
                size += len(piece)
                if size > self._most:
                    raise FileTransferError(f"they exceed {self._most // MIB} MiB.", path=_WORK, fault="too_large")
                await asyncio.to_thread(file.write, piece)

    def _remove_forgotten(self) -> None:
        """Remove the files of restarts that were never continued."""
        for tar in self._folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):
                if tar != self._tar and time.time() - tar.stat().st_mtime > _FORGOTTEN:
                    tar.unlink()


def _open_private(path: Path) -> BinaryIO:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, MIB):
        yield piece
