"""HostFiles: notebooks in files of the host. Only for callers who may read and write there."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.errors import StoreError
from orchestrator.limits import Deadline
from orchestrator.notebooks.ipynb import LARGEST_FILE
from orchestrator.notebooks.notebookfiles import digest

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_PATIENCE, _PAUSE = 10.0, 0.01  # seconds
_LIBC = ctypes.CDLL(None, use_errno=True)


class HostFiles:
    """See ``NotebookFiles``. A link is followed, and stays a link."""

    async def read(self, path: str) -> bytes | None:
        """See ``NotebookFiles``."""
        return await asyncio.to_thread(_checked, _read, Path(path))

    async def replace(self, path: str, content: bytes, seen: str) -> bytes | None:
        """See ``NotebookFiles``. What another program writes meanwhile is found, and put back."""
        return await asyncio.to_thread(_checked, lambda target: _replace(target, content, seen), Path(path))


def _checked(work: Callable[[Path], bytes | None], path: Path) -> bytes | None:
    try:
        return work(path.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the path, or links in a circle
        raise StoreError(
            f"{str(path)!r} cannot be read or written: {getattr(error, 'strerror', None) or error}.",
            remedy="Check that its folder exists, is writable and has room.",
        ) from error


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        return None


def _replace(path: Path, content: bytes, seen: str) -> bytes | None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        _write(part, content, path)
        with _locked(path.parent) as folder:
            there = _read(path)
            if digest(there) != seen:
                return there
            if there is None:
                os.link(part, path)  # fails if there is a file by now
            elif not _exchange(part, path):
                part.replace(path)
            elif digest(was := _read(part)) != seen:  # another program wrote it since it was read above
                _exchange(part, path)
                return was
            os.fsync(folder)
        return None
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Let one process of Cellblock at a time replace files of a folder. Yields the folder's descriptor.

    Raises:
        TimeoutError: another process has had the lock for 10 s.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = Deadline(_PATIENCE)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not deadline.remaining():
                    raise TimeoutError(errno.ETIMEDOUT, "another process has locked the folder") from None
                time.sleep(_PAUSE)
        yield descriptor
    finally:
        os.close(descriptor)


def _write(part: Path, content: bytes, path: Path) -> None:
    """Write a file beside ``path``, with the mode of ``path``, and wait until it is on the disk."""
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb") as file:
        if path.exists():
            os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _exchange(one: Path, other: Path) -> bool:
    """Let two files change places at once. Returns whether the file system can do that."""
    names = (os.fsencode(one), os.fsencode(other))
    return bool(_LIBC.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
