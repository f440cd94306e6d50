"""Files that are written whole or not at all, even if the process or the machine stops meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import StoreError


class WholeFiles:
    """Files that are written together: each under a temporary name, until ``whole_files`` gives them their own."""

    def __init__(self) -> None:
        self._files: list[tuple[Path, Path]] = []  # the temporary name and the file's own

    @contextlib.contextmanager
    def writing(self, path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
        """Write one of the files.

        Raises:
            OSError: it cannot be written.
        """
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        self._files.append((partial, path))
        with open(descriptor, "wb") as handle:
            yield handle

    def finish(self) -> None:
        """Sync all files, then rename all, then sync their folders: the disk is waited for once, not once a file.

        Raises:
            OSError: a file cannot be synced or renamed.
        """
        for partial, _ in self._files:
            _sync(partial, os.O_RDWR)
        for partial, path in self._files:
            partial.replace(path)
        for folder in {path.parent for _, path in self._files}:
            _sync(folder, os.O_RDONLY | os.O_DIRECTORY)

    def discard(self) -> None:
        """Remove the temporary files."""
        for partial, _ in self._files:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_files() -> Iterator[WholeFiles]:
    """Write files together. They appear, whole and on the disk, when the block ends without an error.

    Raises:
        OSError: one cannot be written. No temporary file remains, and an earlier file of the same name is unchanged or
            replaced as a whole.
    """
    files = WholeFiles()
    try:
        yield files
        files.finish()
    except BaseException:
        files.discard()
        raise


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Write a file, whole or not at all, even if the machine stops.

    Raises:
        OSError: it cannot be written. An earlier file at ``path`` is unchanged.
    """
    with whole_files() as files, files.writing(path, mode=mode) as handle:
        handle.write(content.encode() if isinstance(content, str) else content)


def save_whole(path: Path, content: str) -> None:
    """Write a file that the user asked for, whole or not at all.

    Raises:
        StoreError: it cannot be written. An earlier file at ``path`` is unchanged.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}.",
            remedy="Check that its folder exists, is writable and has room.",
        ) from error


def write_once(path: Path, content: bytes, *, mode: int = 0o600) -> bytes:
    """Write a file unless it exists, and return its content. Two callers at once get the same content.

    Raises:
        OSError: it cannot be written or read.
    """
    if not path.exists():
        candidate = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
        try:
            write_whole(candidate, content, mode=mode)
            with contextlib.suppress(FileExistsError):
                os.link(candidate, path)
        finally:
            candidate.unlink(missing_ok=True)
        _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    return path.read_bytes()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
