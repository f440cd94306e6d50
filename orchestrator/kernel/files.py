"""Asks a live kernel about its files, and to change them, over its control channel, also while a cell runs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from orchestrator.errors import FileFault, FileTransferError
from orchestrator.kernel.channel import Message
from orchestrator.kernel.kernel import Kernel
from orchestrator.kernel.pace import Pace
from orchestrator.kernel.translate import text
from orchestrator.limits import MIB
from orchestrator.output.fileinfo import FileInfo, parse_entries
from orchestrator.output.printable import printable

MOST_LISTED = 100_000
_LONGEST_LIST = 16 * MIB  # bytes
_SMALL_LIST = 64 * 1024  # bytes
_WORK = PurePosixPath("/work")
_SIZED = {"/work": "work_mb", "/tmp": "tmp_mb", "/dev/shm": "shm_mb"}  # noqa: S108 - folders of the sandbox
_LONGEST_PATH = 4096  # bytes
_PATIENCE = 30.0  # seconds
_FAULTS: dict[int, FileFault] = {
    1: "permission",  # EPERM
    2: "missing",  # ENOENT
    13: "permission",  # EACCES
    17: "exists",  # EEXIST
    20: "not_a_folder",  # ENOTDIR
    21: "is_folder",  # EISDIR
    28: "full",  # ENOSPC
    30: "permission",  # EROFS
    39: "not_empty",  # ENOTEMPTY
    122: "full",  # EDQUOT
}


async def stat(kernel: Kernel, path: str, *, follow: bool) -> FileInfo:
    """Return what a path is.

    Args:
        follow: whether to follow a link.

    Raises:
        FileTransferError: there is no such file, or it cannot be looked at.
        KernelDiedError: the kernel died.
    """
    inside = resolve(path)
    reply = await ask(kernel, "stat", {"path": coded(inside), "follow": follow}, path)
    return (await _parsed(_buffer(reply), inside, 1, path))[0]


async def list_folder(kernel: Kernel, path: str, *, recursive: bool, pattern: str, most: int) -> list[FileInfo]:
    """Return the files in a folder, in the order of their names.

    Raises:
        FileTransferError: it cannot be listed, or has more files than ``most``.
        KernelDiedError: the kernel died.
    """
    folder = resolve(path)
    content = {
        "path": coded(folder),
        "recursive": recursive,
        "pattern": coded(pattern),
        "most": most,
        "list": secrets.token_hex(8),
    }
    found, last, more = bytearray(), False, False
    pace = Pace()
    while not last:
        reply = await ask(kernel, "list", {**content, "offset": len(found)}, path, pace)
        piece = _buffer(reply)
        found += piece
        last = reply.content.get("last") is True or not piece
        more = more or reply.content.get("more") is True
        pace.moved = len(found)
        if len(found) > _LONGEST_LIST:
            raise FileTransferError(f"the sandbox sent too long a list of {named(path)}.", path=path)
    if more:
        raise FileTransferError(
            f"{named(path)} has more than {most} files.",
            path=path,
            fault="too_large",
            remedy="Pass a pattern, or a larger limit.",
        )
    return await _parsed(bytes(found), folder, most, path)


async def make_folder(kernel: Kernel, path: str, *, parents: bool) -> bool:
    """Make a folder. Returns whether it is new.

    Raises:
        FileTransferError: it cannot be made.
        KernelDiedError: the kernel died.
    """
    reply = await ask(kernel, "folder", {"path": coded(resolve(path)), "parents": parents}, path)
    return reply.content.get("made") is True


async def move(kernel: Kernel, source: str, destination: str) -> None:
    """Move a file or a folder.

    Raises:
        FileTransferError: it cannot be moved.
        KernelDiedError: the kernel died.
    """
    await ask(kernel, "move", {"path": coded(resolve(source)), "to": coded(resolve(destination))}, source)


async def remove(kernel: Kernel, path: str, *, recursive: bool) -> None:
    """Remove a file, a link or a folder.

    Raises:
        FileTransferError: it cannot be removed.
        KernelDiedError: the kernel died.
    """
    inside = resolve(path)
    if inside in ("/", *_SIZED):
        raise FileTransferError(f"{named(path)} cannot be removed.", path=path, fault="permission")
    await ask(kernel, "remove", {"path": coded(inside), "recursive": recursive}, path)


async def ask(
    kernel: Kernel,
    operation: str,
    content: dict[str, Any],
    path: str,
    pace: Pace | None = None,
    buffers: Sequence[bytes] = (),
) -> Message:
    """Send a request about a file, and return the reply.

    Args:
        path: as the caller named it.
        pace: the time that the reply may take; None for 30 s.

    Raises:
        FileTransferError: the sandbox refuses, or the kernel is too slow.
        KernelDiedError: the kernel died.
    """
    kind, timeout = f"file_{operation}_request", _PATIENCE if pace is None else pace.remaining()
    try:
        reply = await kernel.request("control", kind, content, timeout=timeout, buffers=buffers)
    except TimeoutError as error:
        moved = 0 if pace is None else pace.moved
        slow = f"moved {moved} bytes of {named(path)} too slowly"
        silent = f"did not answer within {_PATIENCE if pace is None else pace.patience:g} s about {named(path)}"
        raise FileTransferError(f"the kernel {slow if moved else silent}.", path=path, fault="slow") from error
    if reply.content.get("status") != "ok":
        raise _refusal(operation, reply.content, path)
    return reply


def resolve(path: str) -> str:
    """Return the absolute path in the sandbox. It may lead anywhere there: the sandbox is the boundary.

    The host resolves a relative path, so that all pieces of a file meet in one place, whatever a cell does meanwhile.

    Raises:
        FileTransferError: it is no path.
    """
    try:
        size = len(path.encode("utf-8", "surrogateescape"))
    except (UnicodeEncodeError, AttributeError):
        size = 0
    if not size or "\0" in path or size > _LONGEST_PATH:
        raise FileTransferError(
            f"{printable(str(path), 100)!r} is not a path in the sandbox: it must be text of at most {_LONGEST_PATH} "
            "bytes without NUL.",
            path=path,
        )
    return str(_WORK / path)


def resolve_file(path: str) -> str:
    """Return the absolute path of a file in the sandbox.

    Raises:
        FileTransferError: it is no path, or has no name.
    """
    if isinstance(path, str) and (not PurePosixPath(path).name or PurePosixPath(path).name == ".."):
        raise FileTransferError(f"{named(path)} is not the path of a file in the sandbox.", path=path)
    return resolve(path)


def coded(path: str) -> str:
    """Return a path for JSON: each byte of it as one character."""
    return path.encode("utf-8", "surrogateescape").decode("latin-1")


def named(path: str) -> str:
    """Return a path for a message."""
    return repr(printable(path, 200))


def _buffer(reply: Message) -> bytes:
    return bytes(reply.buffers[0]) if reply.buffers else b""


async def _parsed(data: bytes, folder: str, most: int, path: str) -> list[FileInfo]:
    try:
        if len(data) > _SMALL_LIST:  # a hundred thousand files take half a second
            found = await asyncio.to_thread(parse_entries, data, folder, most)
        else:
            found = parse_entries(data, folder, most)
    except ValueError as error:
        raise FileTransferError(f"the sandbox sent no list of {named(path)}.", path=path) from error
    if most == 1 and not found:
        raise FileTransferError(f"the sandbox sent nothing about {named(path)}.", path=path)
    return found


def _refusal(operation: str, content: dict[str, Any], path: str) -> FileTransferError:
    reason = printable(text(content.get("reason")), 200) or "no reason given"
    number = content.get("errno")
    fault = _FAULTS.get(number, "other") if isinstance(number, int) else "other"
    verb = {"folder": "make the folder", "stat": "look at"}.get(operation, operation)
    message = f"the sandbox could not {verb} {named(path)}: {reason}."
    return FileTransferError(message, path=path, fault=fault, remedy=_remedy(fault, path))


def _remedy(fault: FileFault, path: str) -> str:
    if fault != "full":
        return ""
    absolute = _WORK / path
    folder, key = next(row for row in (*_SIZED.items(), ("/work", "work_mb")) if absolute.is_relative_to(row[0]))
    return f"It does not fit: the sandbox's {folder} is full. Raise [tmpfs] {key} in the policy."
