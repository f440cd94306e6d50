"""Restoring: move a session into a fresh kernel that has the state of a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.errors import CellblockError, CheckpointError, KernelDiedError
from orchestrator.limits import Deadline
from orchestrator.pool.kernelpool import KernelPool
from orchestrator.sessions.acquiring import Acquiring
from orchestrator.sessions.checkpoint import Checkpoint, capture, load
from orchestrator.sessions.hibernation import Hibernation
from orchestrator.sessions.registry import SessionRegistry
from orchestrator.sessions.restored import Restored
from orchestrator.sessions.session import KernelSession
from orchestrator.store.checkpointfiles import CheckpointFiles

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


def _path_of(checkpoint: Checkpoint | str | Path, files: CheckpointFiles) -> Path:
    if isinstance(checkpoint, Checkpoint):
        return checkpoint.path
    if isinstance(checkpoint, str) and _CHECKPOINT_ID.fullmatch(checkpoint):
        return files.path(checkpoint)
    return Path(checkpoint)
