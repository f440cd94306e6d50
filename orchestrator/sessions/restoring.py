"""Restoring: move a session into a fresh kernel that has the state of a checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from orchestrator.errors import CellblockError, CheckpointError, KernelDiedError
from orchestrator.foldertransfer import largest_tar, pack, unpack
from orchestrator.limits import MIB, Deadline
from orchestrator.outcome import Outcome
from orchestrator.pool.kernelpool import KernelPool
from orchestrator.sessions.acquiring import Acquiring
from orchestrator.sessions.checkpoint import Checkpoint, capture, load
from orchestrator.sessions.hibernation import Hibernation
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.restored import Restored
from orchestrator.sessions.session import KernelSession
from orchestrator.store.checkpointfiles import CheckpointFiles

_WORK = "/work"
_KERNEL_WAIT = 60.0  # seconds of a wait that the caller did not bound: the session keeps its own kernel meanwhile
_CHECKPOINT_ID = re.compile(r"[0-9a-f]{32}")


class Restoring:
    """Restores checkpoints into the sessions of one manager."""

    def __init__(
        self, registry: SessionRegistry, acquiring: Acquiring, hibernation: Hibernation, pool: KernelPool
    ) -> None:
        self._registry = registry
        self._acquiring = acquiring
        self._hibernation = hibernation
        self._pool = pool

    async def restore(
        self, session: KernelSession, checkpoint: Checkpoint | str | Path, timeout: float | None
    ) -> Restored:
        """Move a session into a fresh kernel that loads a checkpoint. Nothing changes until it has loaded.

        Args:
            timeout: seconds to wait for a free kernel; None waits a minute.

        Raises:
            CheckpointError, KernelDiedError: see ``checkpoint.load``.
            KernelPoolExhaustedError, KernelStartError, EngineError: there is no kernel for it.
        """
        path = _path_of(checkpoint, self._registry.files)
        async with self._registry.locked(session.agent_id, timeout), session.between_cells():
            session.live_kernel()
            deadline = Deadline(_KERNEL_WAIT if timeout is None else timeout)
            await self._registry.backoff.wait(session.agent_id, deadline, self._pool.max_kernels)
            kernel, resource = await self._acquiring.lease(deadline, session.lease_request, room_for=session)
            resource.served = True  # whatever happens now, no other agent gets this kernel
            old_id = session.kernel_id
            try:
                seconds = session.policy.sessions.checkpoint_time_s
                restored = await load(
                    kernel, self._registry.files, path, session.agent_id, seconds, session.package_source
                )
                await session.move(kernel, restored)
                old = self._registry.take_lease(old_id)
                self._registry.enter(session, resource)
            except BaseException as error:
                if isinstance(error, CheckpointError | KernelDiedError):  # its own state cost it a kernel
                    self._registry.note_death(session, kernel, 0.0)
                self._pool.release(resource)
                raise
            self._hibernation.make_room()
            try:  # else the session would wake from a checkpoint of the state that it has just left
                await capture(session, self._registry.files, asked_for=False)
            except CellblockError as error:
                session.notify(f"the restored state could not be kept for a later kernel: {error.message}")
            finally:
                if old is not None:
                    await self._pool.discard(old)
        return restored

    async def restart(self, session: KernelSession, *, keep_files: bool, timeout: float | None) -> None:
        """Give a session a fresh kernel, without its variables. Its running cell and commands end.

        Args:
            keep_files: whether the files of /work move to it.
            timeout: seconds to wait for a free kernel; None waits a minute.

        Raises:
            FileTransferError: the files could not be read; the session keeps its kernel.
            KernelPoolExhaustedError, KernelStartError, EngineError: there is no fresh kernel.
        """
        async with self._registry.locked(session.agent_id, timeout):
            old, deadline = session.live_kernel(), Deadline(_KERNEL_WAIT if timeout is None else timeout)
            with tempfile.TemporaryFile() as files:
                if keep_files:
                    most = largest_tar(session.policy.tmpfs.work_mb)
                    async with contextlib.aclosing(pack(old, _WORK, most)) as pieces:
                        async for piece in pieces:
                            await asyncio.to_thread(files.write, piece)
                await self._registry.put_to_sleep(session, Outcome.RESTART)
                await session.settled()
                try:
                    await self._start_anew(session, files if keep_files else None, deadline)
                except BaseException:
                    if not await self._registry.has_checkpoint(session.session_id):
                        await session.end(Outcome.RESTART)
                    raise

    async def _start_anew(self, session: KernelSession, files: IO[bytes] | None, deadline: Deadline) -> None:
        kernel, resource = await self._acquiring.lease(deadline, session.lease_request, room_for=session)
        resource.served = True  # whatever happens now, no other agent gets this kernel
        try:
            if files is not None:
                await asyncio.to_thread(files.seek, 0)
                await unpack(kernel, _WORK, _pieces(files))
            await session.restart(kernel)
            self._registry.enter(session, resource)
        except BaseException:
            self._pool.release(resource)
            raise


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    while piece := await asyncio.to_thread(file.read, MIB):
        yield piece


def _path_of(checkpoint: Checkpoint | str | Path, files: CheckpointFiles) -> Path:
    if isinstance(checkpoint, Checkpoint):
        return checkpoint.path
    if isinstance(checkpoint, str) and _CHECKPOINT_ID.fullmatch(checkpoint):
        return files.path(checkpoint)
    return Path(checkpoint)
