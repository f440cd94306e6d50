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
from orchestrator.kernel.translate import text

PIECE = 1024 * 1024  # bytes
_WORK = ("/work", "work_mb")
_SIZED = (("/tmp", "tmp_mb"), ("/dev/shm", "shm_mb"))  # noqa: S108 - in the sandbox
_REPLY_TIMEOUT = 30.0  # seconds for one piece; a sandbox under memory pressure takes its time


@dataclass(frozen=True, slots=True)
class Transfer:
    """A file that was copied: its size in bytes, and its SHA-256."""

    size: int
    sha256: str


async def put_file(kernel: Kernel, source: Path | bytes, destination: str) -> Transfer:
    """Copy a file of the host, or bytes, into the sandbox.

    Args:
        destination: path inside; a relative one starts at the working directory. Missing folders are created.

    Raises:
        FileTransferError: the source cannot be read, or the destination cannot be written. Nothing is left there.
        KernelDiedError: the kernel died.
    """
    path = _inside(destination)
    partial = str(PurePosixPath(path).with_name(f".{secrets.token_hex(4)}.part"))
    try:
        return await _send(kernel, source, partial, path)
    except BaseException:
        await _discard(kernel, partial)
        raise


async def get_file(kernel: Kernel, source: str, destination: Path, limit: int) -> Transfer:
    """Copy a file of the sandbox to the host.

    Args:
        source: path inside; a relative one starts at the working directory.
        limit: bytes that the file may have; a sandbox could send without end.

    Raises:
        FileTransferError: the file cannot be read or is larger than ``limit``, or the destination cannot be written.
        KernelDiedError: the kernel died.
    """
    path = _inside(source)
    if not destination.name:
        raise FileTransferError(f"{destination} is not the path of a file.", path=str(destination))
    partial = destination.with_name(f".{secrets.token_hex(4)}.part")
    try:
        handle = await asyncio.to_thread(open, partial, "xb")
    except OSError as error:
        raise _host_error(destination, error) from error
    try:
        size, digest = 0, hashlib.sha256()
        with handle:
            async for piece in _pieces(kernel, path, source, limit):
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


async def _send(kernel: Kernel, source: Path | bytes, partial: str, path: str) -> Transfer:
    offset, digest = 0, hashlib.sha256()
    async for piece, last in _read(source):
        content = {"path": partial, "offset": offset, "last": last, "rename": path}
        await _ask(kernel, "write", content, path, (piece,))
        await asyncio.to_thread(digest.update, piece)
        offset += len(piece)
    return Transfer(offset, digest.hexdigest())


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


async def _pieces(kernel: Kernel, path: str, named: str, limit: int) -> AsyncIterator[bytes]:
    offset = 0
    while True:
        reply = await _ask(kernel, "read", {"path": path, "offset": offset, "length": PIECE}, named)
        piece = bytes(reply.buffers[0]) if reply.buffers else b""
        if len(piece) > PIECE:
            raise FileTransferError(f"the sandbox sent more of {named!r} than was asked for.", path=named)
        if not piece:
            return
        offset += len(piece)
        if offset > limit:
            raise FileTransferError(
                f"{named!r} is larger than {limit} bytes.", path=named, remedy="Pass a larger limit to get_file."
            )
        yield piece
        if len(piece) < PIECE:  # the end; a kernel that sends little at a time could go on without end
            return


async def _ask(
    kernel: Kernel, operation: str, content: dict[str, Any], named: str, buffers: tuple[bytes, ...] = ()
) -> Message:
    kind = f"file_{operation}_request"
    try:
        reply = await kernel.request("control", kind, content, timeout=_REPLY_TIMEOUT, buffers=buffers)
    except TimeoutError as error:
        raise FileTransferError(
            f"the kernel did not answer within {_REPLY_TIMEOUT:g} s about {named!r}.", path=named
        ) from error
    if reply.content.get("status") != "ok":
        reason = text(reply.content.get("reason"))[:200] or "no reason given"
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
    """Check a path in the sandbox. It may lead anywhere there: the sandbox is the boundary."""
    pure = PurePosixPath(path)
    if not pure.name or not path.isprintable() or len(path.encode("utf-8", "replace")) > 4096:
        raise FileTransferError("a path in the sandbox must be printable, and not empty.", path=repr(path))
    return str(pure)


def _remedy(content: dict[str, Any], path: str) -> str:
    if content.get("errno") == 28:  # ENOSPC
        folder, key = next((row for row in _SIZED if path.startswith(f"{row[0]}/")), _WORK)
        return f"It does not fit: the sandbox's {folder} is full. Raise [tmpfs] {key} in the policy."
    return ""


def _host_error(path: Path, error: OSError) -> FileTransferError:
    return FileTransferError(f"{path}: {error.strerror or error}.", path=str(path))
