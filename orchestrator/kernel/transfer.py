"""Copies files into and out of a live kernel over its control channel, also while a cell runs.

The host holds one bounded piece at a time. A file appears at its destination whole or not at all, since both sides
write it under another name first.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from orchestrator.errors import FileTransferError
from orchestrator.kernel.channel import Message
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.pace import Pace
from orchestrator.kernel.translate import text
from orchestrator.output.printable import printable

PIECE = 1024 * 1024  # bytes
_WORK = PurePosixPath("/work")
_SIZED = {"/work": "work_mb", "/tmp": "tmp_mb", "/dev/shm": "shm_mb"}  # noqa: S108 - folders of the sandbox
_LONGEST_PATH = 4096  # bytes


@dataclass(frozen=True, slots=True)
class Transfer:
    """A file that was copied: its size in bytes, and its SHA-256."""

    size: int
    sha256: str


async def put_file(kernel: Kernel, source: Path | bytes, destination: str, pace: Pace | None = None) -> Transfer:
    """Copy a file of the host, or bytes, into the sandbox.

    Args:
        destination: path inside; a relative one starts at /work, also after a cell changed its working directory.
            Missing folders are created.
        pace: the time that it may take; None for 30 s and a second per MiB.

    Raises:
        FileTransferError: the source cannot be read, the destination cannot be written, or the kernel is too
            slow. Nothing is left there.
        KernelDiedError: the kernel died.
    """
    path = _inside(destination)
    partial = str(PurePosixPath(path).with_name(f".{secrets.token_hex(4)}.part"))
    try:
        return await _send(kernel, source, partial, path, pace or Pace())
    except BaseException:
        await _discard(kernel, partial)
        raise


async def get_file(kernel: Kernel, source: str, destination: Path, limit: int, pace: Pace | None = None) -> Transfer:
    """Copy a file of the sandbox to the host.

    Args:
        source: path inside; a relative one starts at /work, also after a cell changed its working directory.
        limit: bytes that the file may have; a sandbox could send without end.
        pace: see ``put_file``.

    Raises:
        FileTransferError: the file cannot be read or is larger than ``limit``, the destination cannot be written, or
            the kernel is too slow.
        KernelDiedError: the kernel died.
    """
    path = _inside(source)
    if not destination.name:
        raise FileTransferError(f"{str(destination)!r} is not the path of a file.", path=str(destination))
    partial = destination.with_name(f".{secrets.token_hex(4)}.part")
    try:
        handle = await asyncio.to_thread(open, partial, "xb")
    except OSError as error:
        raise _host_error(destination, error) from error
    try:
        size, digest = 0, hashlib.sha256()
        with handle:
            async for piece in _pieces(kernel, path, source, limit, pace or Pace()):
                await _write(handle, piece, destination)
                await asyncio.to_thread(digest.update, piece)
                size += len(piece)
        await asyncio.to_thread(_settle, partial, destination)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, FileTransferError):
            raise
        raise _host_error(destination, error) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return Transfer(size, digest.hexdigest())


async def _send(kernel: Kernel, source: Path | bytes, partial: str, path: str, pace: Pace) -> Transfer:
    digest = hashlib.sha256()
    async for piece, last in _read(source):
        content = {"path": partial, "offset": pace.moved, "last": last, "rename": path}
        await _ask(kernel, "write", content, path, pace, (piece,))
        await asyncio.to_thread(digest.update, piece)
        pace.moved += len(piece)
    return Transfer(pace.moved, digest.hexdigest())


async def _read(source: Path | bytes) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield each piece, and whether it is the last. An empty file is one empty piece."""
    if isinstance(source, bytes):
        for start in range(0, max(len(source), 1), PIECE):
            yield source[start : start + PIECE], start + PIECE >= len(source)
        return
    try:
        handle = await asyncio.to_thread(open, source, "rb")
        with handle:
            piece = await asyncio.to_thread(handle.read, PIECE)
            while True:
                following = await asyncio.to_thread(handle.read, PIECE) if len(piece) == PIECE else b""
                yield piece, not following
                if not following:
                    return
                piece = following
    except OSError as error:
        if isinstance(error, FileTransferError):
            raise
        raise _host_error(source, error) from error


async def _pieces(kernel: Kernel, path: str, named: str, limit: int, pace: Pace) -> AsyncIterator[bytes]:
    while True:
        reply = await _ask(kernel, "read", {"path": path, "offset": pace.moved, "length": PIECE}, named, pace)
        piece = bytes(reply.buffers[0]) if reply.buffers else b""
        if len(piece) > PIECE:
            raise FileTransferError(f"the sandbox sent more of {named!r} than was asked for.", path=named)
        if not piece:
            return
        pace.moved += len(piece)
        if pace.moved > limit:
            raise FileTransferError(
                f"{named!r} is larger than {limit} bytes.", path=named, remedy="Pass a larger limit to get_file."
            )
        yield piece
        if len(piece) < PIECE:  # the end; a kernel that sends little at a time could go on without end
            return


async def _ask(
    kernel: Kernel,
    operation: str,
    content: dict[str, Any],
    named: str,
    pace: Pace,
    buffers: tuple[bytes, ...] = (),
) -> Message:
    kind, timeout = f"file_{operation}_request", pace.remaining()
    try:
        reply = await kernel.request("control", kind, content, timeout=timeout, buffers=buffers)
    except TimeoutError as error:
        slow = f"moved {pace.moved} bytes of {named!r} too slowly"
        silent = f"did not answer within {pace.patience:g} s about {named!r}"
        raise FileTransferError(f"the kernel {slow if pace.moved else silent}.", path=named) from error
    if reply.content.get("status") != "ok":
        reason = printable(text(reply.content.get("reason")), 200) or "no reason given"
        raise FileTransferError(
            f"the sandbox could not {operation} {named!r}: {reason}.", path=named, remedy=_remedy(reply.content, named)
        )
    return reply


async def _discard(kernel: Kernel, partial: str) -> None:
    """Remove an unfinished file in the sandbox, unless the kernel is gone, and the file with it."""
    if kernel.is_alive:
        kernel.forget(kernel.send("control", "file_remove_request", {"path": partial}, lambda _message: None))


async def _write(handle: BinaryIO, piece: bytes, destination: Path) -> None:
    try:
        await asyncio.to_thread(handle.write, piece)
    except OSError as error:
        raise _host_error(destination, error) from error


def _settle(partial: Path, destination: Path) -> None:
    with open(partial, "rb") as handle:
        os.fsync(handle.fileno())
    partial.replace(destination)


def _inside(path: str) -> str:
    """Return the absolute path in the sandbox. It may lead anywhere there: the sandbox is the boundary.

    The host resolves a relative path, so that all pieces of a file meet in one place, whatever a cell does meanwhile.
    """
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        size = 0
    if not size or "\0" in path or size > _LONGEST_PATH or not PurePosixPath(path).name:
        raise FileTransferError(
            f"{printable(path, 100)!r} is not the path of a file in the sandbox: it must be UTF-8 text of at most "
            f"{_LONGEST_PATH} bytes without NUL.",
            path=path,
        )
    return str(_WORK / path)


def _remedy(content: dict[str, Any], path: str) -> str:
    if content.get("errno") == 28:  # ENOSPC
        absolute = _WORK / path
        folder, key = next(row for row in (*_SIZED.items(), ("/work", "work_mb")) if absolute.is_relative_to(row[0]))
        return f"It does not fit: the sandbox's {folder} is full. Raise [tmpfs] {key} in the policy."
    return ""


def _host_error(path: Path, error: OSError) -> FileTransferError:
    return FileTransferError(f"{printable(str(path))}: {error.strerror or error}.", path=str(path))
