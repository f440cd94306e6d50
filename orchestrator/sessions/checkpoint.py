"""Checkpoint: a session's state in a signed file; and the reference's checkpoint, its history alone, as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import CellblockError, CheckpointForeignError, InvalidInputError, NotOwnerError, StoreError
from orchestrator.image.packages import PackageSource
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.statetransfer import load_state, save_state
from orchestrator.limits import MIB
from orchestrator.sessions.installing import hand_in_again
from orchestrator.sessions.restored import Lost, Restored
from orchestrator.sessions.session import KernelSession
from orchestrator.store.checkpointfiles import CheckpointFiles, CheckpointReader, CheckpointWriter
from orchestrator.store.history import CheckpointRecord, History
from orchestrator.store.wholefile import save_whole

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A session's state in a file. Only a fresh kernel of the same agent loads it.

    Attributes:
        created_at: seconds since the epoch.
        cell: the last cell whose effects it has.
        bytes: the file's size.
        lost: what could not be captured. After a restore, a cell that uses it gets a NotRestoredError.
    """

    checkpoint_id: str
    session_id: str
    agent_id: str
    created_at: float
    cell: int
    bytes: int
    lost: tuple[Lost, ...]
    path: Path

    @property
    def complete(self) -> bool:
        """Whether nothing was lost."""
        return not self.lost


async def capture(session: KernelSession, files: CheckpointFiles, *, asked_for: bool) -> Checkpoint:
    """Write the session's state to a new file and record it in the store. Call it while no cell runs.

    It replaces the session's earlier checkpoints that no caller asked for.

    Args:
        asked_for: whether a caller wants this checkpoint, and not Cellblock itself.

    Raises:
        CheckpointTooLargeError, CheckpointStateError: no checkpoint was made; the session continues.
        StoreError: the checkpoint could not be written; no part of it is left.
        NotOwnerError: another process has taken the session over; no part of it is left.
        QuotaExceededError: a caller wants it, and the agent keeps as much as it may; no part of it is left.
        KernelDiedError, SessionEndedError: there is no kernel.
    """
    kernel = session.live_kernel()
    if asked_for and session.store is not None:
        await session.store.run(History.check_quota, session.session_id)
    policy = session.policy.sessions
    checkpoint_id, now = uuid.uuid4().hex, time.time()
    header = {
        "checkpoint_id": checkpoint_id,
        "session_id": session.session_id,
        "agent_id": session.agent_id,
        "created_at": now,
        "cell": session.cell_count,
        "image": kernel.description()["image"],
        "packages": [wheel.as_dict() for wheel in session.packages.values()],
    }
    async with _in_thread(files.writing(checkpoint_id, header, policy.checkpoint_mb * MIB)) as writer:
        found = await save_state(kernel, _begin(writer), policy.checkpoint_time_s)
        await asyncio.to_thread(writer.finish, {"lost": found})
    size = await asyncio.to_thread(files.size, checkpoint_id)
    lost = tuple(Lost(**loss) for loss in found)
    record = CheckpointRecord(checkpoint_id, session.session_id, now, session.cell_count, asked_for, size, found)
    await _record(session, files, record)
    cell, path = session.cell_count, files.path(checkpoint_id)
    session.note(kernel, "checkpoint.made", checkpoint=checkpoint_id, cell=cell, bytes=size, lost=len(lost))
    return Checkpoint(checkpoint_id, session.session_id, session.agent_id, now, cell, size, lost, path)


async def _record(session: KernelSession, files: CheckpointFiles, record: CheckpointRecord) -> None:
    """Record a new checkpoint, and remove the files of those that it replaces; on failure its own file."""
    try:
        replaced = await session.add_checkpoint(record)
    except (NotOwnerError, StoreError):
        await asyncio.to_thread(files.remove, record.checkpoint_id)
        raise
    for earlier in replaced:
        await asyncio.to_thread(files.remove, earlier)


async def capture_between_cells(session: KernelSession, files: CheckpointFiles, *, asked_for: bool) -> Checkpoint:
    """Do what ``capture`` does, once no cell runs."""
    async with session.between_cells():
        return await capture(session, files, asked_for=asked_for)


async def capture_if_due(session: KernelSession, files: CheckpointFiles, every: int) -> None:
    """Capture the session's state after every ``every``-th cell; 0 never does. A failure becomes a notice."""
    if every and session.cell_count % every == 0 and session.is_awake:
        try:
            await capture_between_cells(session, files, asked_for=False)
        except CellblockError as error:  # the cell has run, whatever happened to its kernel since
            session.notify(f"no checkpoint could be made after cell {session.cell_count}: {error.message}")


async def load(
    kernel: Kernel,
    files: CheckpointFiles,
    path: Path,
    agent_id: str,
    timeout: float,
    packages: PackageSource | None = None,
) -> Restored:
    """Load a checkpoint into a fresh kernel, after the packages that its session had.

    Args:
        packages: where they come from.
        timeout: seconds that loading may take.

    Raises:
        CheckpointMissingError, CheckpointDamagedError, CheckpointFormatError: see ``CheckpointFiles.reading``; the
            kernel has received nothing of it.
        CheckpointForeignError: it belongs to another agent; the kernel has received nothing of it.
        CheckpointStateError, KernelDiedError: the kernel could not load it, and must be discarded.
    """
    begun = time.monotonic()
    async with _in_thread(files.reading(path)) as reader:
        _refuse_foreign(reader, path, agent_id)
        wheels, missing = await hand_in_again(kernel, packages, reader.header.get("packages"))
        lost = await load_state(kernel, lambda: _pieces(reader), timeout)
        found = [*reader.footer["lost"], *lost]
        return Restored(
            reader.header["checkpoint_id"],
            reader.header["cell"],
            (*missing, *(Lost(**loss) for loss in found)),
            time.monotonic() - begun,
            tuple(wheels),
        )


async def copy(checkpoint: Checkpoint, session: KernelSession, files: CheckpointFiles) -> CheckpointRecord:
    """Write a checkpoint's state to a new file for another agent's session. The caller records it in the store.

    Raises:
        CheckpointMissingError, CheckpointDamagedError, StoreError: a file cannot be read or written.
    """
    checkpoint_id, now = uuid.uuid4().hex, time.time()

    def rewrite() -> dict[str, Any]:
        with files.reading(checkpoint.path) as reader:
            names = {"checkpoint_id": checkpoint_id, "session_id": session.session_id, "agent_id": session.agent_id}
            header = reader.header | names | {"created_at": now, "cell": 0}
            with files.writing(checkpoint_id, header, reader.size) as writer:
                offset = 0
                while piece := reader.piece(offset):
                    writer.write(piece)
                    offset += len(piece)
                writer.finish(reader.footer)
            return reader.footer

    footer = await asyncio.to_thread(rewrite)
    return CheckpointRecord(checkpoint_id, session.session_id, now, 0, False, checkpoint.bytes, footer["lost"])


def _refuse_foreign(reader: CheckpointReader, path: Path, agent_id: str) -> None:
    if reader.header["agent_id"] != agent_id:
        raise CheckpointForeignError(
            f"checkpoint {path.name} belongs to another agent than {agent_id!r}.",
            agent_id=agent_id,
            checkpoint=path.name,
        )


def _begin(writer: CheckpointWriter) -> Callable[[], Awaitable[Callable[[bytes], Awaitable[None]]]]:
    async def write(piece: bytes) -> None:
        await asyncio.to_thread(writer.write, piece)

    async def begin() -> Callable[[bytes], Awaitable[None]]:
        await asyncio.to_thread(writer.restart)
        return write

    return begin


async def _pieces(reader: CheckpointReader) -> AsyncIterator[bytes]:
    offset = 0
    while piece := await asyncio.to_thread(reader.piece, offset):
        yield piece
        offset += len(piece)


@contextlib.asynccontextmanager
async def _in_thread(context: contextlib.AbstractContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave, in a thread, a context that waits for the disk."""
    entered = await asyncio.to_thread(context.__enter__)
    try:
        yield entered
    except BaseException:
        await asyncio.shield(asyncio.to_thread(context.__exit__, *sys.exc_info()))
        raise
    await asyncio.to_thread(context.__exit__, None, None, None)


async def export_history(session: KernelSession, file_path: str | Path | None = None) -> dict[str, Any]:
    """Return the session's identity and history; with ``file_path``, also write both to that file.

    Raises:
        StoreError: the file cannot be written, or the history cannot be read. An existing file is unchanged.
    """
    await session.history()
    checkpoint = session.checkpoint()
    if file_path is not None:
        await asyncio.to_thread(lambda: save_whole(Path(file_path), json.dumps(checkpoint, indent=2)))
    return checkpoint


async def import_history(
    session: KernelSession, checkpoint_data: dict[str, Any] | None = None, file_path: str | Path | None = None
) -> None:
    """Replace the session's history by that of ``export_history``, from its value or its file.

    The session's kernel, variables and stored cells do not change.

    Raises:
        InvalidInputError: neither or both sources were given, or the data is not a checkpoint. The session is
            unchanged.
        OSError: the file cannot be read.
    """
    session.replace_history(await asyncio.to_thread(_read_checkpoint, checkpoint_data, file_path))


def save_checkpoint(session: KernelSession, file_path: str | Path | None = None) -> dict[str, Any]:
    """Do what ``export_history`` does. Blocks: it writes the file, and reads the history of a session that was woken.

    Raises:
        StoreError: see ``export_history``.
    """
    checkpoint = session.checkpoint()
    if file_path is not None:
        save_whole(Path(file_path), json.dumps(checkpoint, indent=2))
    return checkpoint


def restore_checkpoint(
    session: KernelSession, checkpoint_data: dict[str, Any] | None = None, file_path: str | Path | None = None
) -> None:
    """Do what ``import_history`` does. Blocks while it reads the file.

    Raises:
        InvalidInputError, OSError: see ``import_history``.
    """
    session.replace_history(_read_checkpoint(checkpoint_data, file_path))


_KEYS = {"session_id": str, "kernel_id": str, "agent_id": str, "checkpoint_time": (int, float)}


def _read_checkpoint(checkpoint_data: dict[str, Any] | None, file_path: str | Path | None) -> dict[str, Any]:
    if (checkpoint_data is None) == (file_path is None):
        raise InvalidInputError("pass either checkpoint_data or file_path.")
    data: object = checkpoint_data
    if file_path is not None:
        try:
            data = json.loads(Path(file_path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{file_path} is not a checkpoint: {error}.") from error
    return _checked(data)


def _checked(data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise InvalidInputError("a checkpoint must be a mapping.")
    for key, kind in _KEYS.items():
        if not isinstance(data.get(key), kind):  # type: ignore[arg-type]
            raise InvalidInputError(f"the checkpoint has no valid {key!r}.")
    history = data.get("execution_history")
    if not isinstance(history, list) or not all(_is_entry(entry) for entry in history):
        raise InvalidInputError("the checkpoint has no valid 'execution_history'.")
    return data


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("code"), str) and isinstance(entry.get("result"), dict)
