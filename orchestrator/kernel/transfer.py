"""Copies files into and out of a live kernel over its control channel, also while a cell runs.

The host holds one bounded piece at a time. A file appears at its destination whole or not at all, since both sides
write it under another name first.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from orchestrator.errors import FileTransferError
from orchestrator.kernel.files import ask, coded, named, resolve, resolve_file
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.pace import Pace
from orchestrator.limits import MIB
from orchestrator.output.printable import printable

PIECE = MIB  # bytes

Source = Path | bytes | bytearray | memoryview | AsyncIterable[bytes]


@dataclass(frozen=True, slots=True)
class Transfer:
    """A file that was copied: its size in bytes, and its SHA-256."""

    size: int
    sha256: str


async def put_file(kernel: Kernel, source: Source, destination: str, pace: Pace | None = None) -> Transfer:
    """Copy a file of the host, or bytes, into the sandbox.

    A file that is replaced keeps its mode. Where a link is, what it leads to is replaced.

    Args:
        destination: path inside; a relative one starts at /work, also after a cell changed its working directory.
            Missing folders are created.
        pace: the time that it may take; None for 30 s and a second per MiB.

    Raises:
        FileTransferError: the source cannot be read, the destination cannot be written, or the kernel is too
            slow. Nothing is left there.
        KernelDiedError: the kernel died.
    """
    path = resolve_file(destination)
    partial = str(PurePosixPath(path).with_name(f".{secrets.token_hex(4)}.part"))
    try:
        return await _send(kernel, source, partial, path, pace or Pace())
    except BaseException:  # a cancellation too leaves nothing
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
    path = resolve(source)
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
    except BaseException as error:  # a cancellation too leaves nothing
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, FileTransferError):
            raise _host_error(destination, error) from error
        raise
    return Transfer(size, digest.hexdigest())


async def read_file(
    kernel: Kernel, source: str, limit: int, *, offset: int = 0, length: int | None = None, pace: Pace | None = None
) -> bytes:
    """Return the content of a file of the sandbox.

    Args:
        limit: bytes that it may have.
        offset, length: the range of bytes to read; None: to the end.

    Raises:
        FileTransferError: it cannot be read, or what is to be read is larger than ``limit``.
        KernelDiedError: the kernel died.
    """
    path, found = resolve(source), bytearray()
    async for piece in _pieces(kernel, path, source, limit, pace or Pace(), offset, length):
        found += piece
    return bytes(found)


async def _send(kernel: Kernel, source: Source, partial: str, path: str, pace: Pace) -> Transfer:
    digest = hashlib.sha256()
    async for piece, last in _with_last(_read(source)):
        content = {"path": coded(partial), "offset": pace.moved, "last": last, "rename": coded(path)}
        hashed = asyncio.create_task(asyncio.to_thread(digest.update, piece))
        try:
            await ask(kernel, "write", content, path, pace, (piece,))
        finally:
            await hashed
        pace.moved += len(piece)
    return Transfer(pace.moved, digest.hexdigest())


async def _with_last(pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield each piece, and whether it is the last. No piece at all is one empty piece."""
    piece = await anext(pieces, b"")
    while True:
        following = await anext(pieces, None)
        yield piece, following is None
        if following is None:
            return
        piece = following


async def _read(source: Source) -> AsyncIterator[bytes]:
    """Yield a source in pieces of bounded size."""
    if isinstance(source, Path):
        try:
            with await asyncio.to_thread(open, source, "rb") as handle:
                while piece := await asyncio.to_thread(handle.read, PIECE):
                    yield piece
        except OSError as error:
            if isinstance(error, FileTransferError):
                raise
            raise _host_error(source, error) from error
    elif isinstance(source, bytes | bytearray | memoryview):
        view = memoryview(source).cast("B")
        for start in range(0, len(view), PIECE):
            yield bytes(view[start : start + PIECE])
    else:
        async for data in source:
            for start in range(0, len(data), PIECE):
                yield bytes(data[start : start + PIECE])


async def _pieces(
    kernel: Kernel, path: str, name: str, limit: int, pace: Pace, offset: int = 0, length: int | None = None
) -> AsyncIterator[bytes]:
    """Yield a file in pieces. The next one is asked for while the last one is used."""
    asked: asyncio.Task[bytes] | None = None
    most = length
    try:
        while most is None or pace.moved < most:
            wanted = PIECE if most is None else min(PIECE, most - pace.moved)
            piece = await (asked or _piece(kernel, path, name, offset + pace.moved, wanted, pace))
            asked = None
            if not piece:
                return
            pace.moved += len(piece)
            if pace.moved > limit:
                raise FileTransferError(
                    f"{named(name)} is larger than {limit} bytes.",
                    path=name,
                    fault="too_large",
                    remedy="Pass a larger limit.",
                )
            ends = len(piece) < wanted  # a kernel that sends little at a time could go on without end
            left = PIECE if most is None else min(PIECE, most - pace.moved)
            if not ends and left > 0:
                asked = asyncio.create_task(_piece(kernel, path, name, offset + pace.moved, left, pace))
            yield piece
            if ends:
                return
    finally:
        if asked is not None:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)


async def _piece(kernel: Kernel, path: str, name: str, offset: int, length: int, pace: Pace) -> bytes:
    content = {"path": coded(path), "offset": offset, "length": length}
    reply = await ask(kernel, "read", content, name, pace)
    piece = bytes(reply.buffers[0]) if reply.buffers else b""
    if len(piece) > length:
        raise FileTransferError(f"the sandbox sent more of {named(name)} than was asked for.", path=name)
    return piece


async def _discard(kernel: Kernel, partial: str) -> None:
    """Remove an unfinished file in the sandbox, unless the kernel is gone, and the file with it."""
    if kernel.is_alive:
        kernel.forget(kernel.send("control", "file_discard_request", {"path": coded(partial)}, lambda _message: None))


async def _write(handle: BinaryIO, piece: bytes, destination: Path) -> None:
    try:
        await asyncio.to_thread(handle.write, piece)
    except OSError as error:
        raise _host_error(destination, error) from error


def _settle(partial: Path, destination: Path) -> None:
    with open(partial, "rb") as handle:
        os.fsync(handle.fileno())
    partial.replace(destination)


def _host_error(path: Path, error: OSError) -> FileTransferError:
    return FileTransferError(f"{printable(str(path))}: {error.strerror or error}.", path=str(path))
