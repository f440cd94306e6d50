"""Files that are written whole or not at all, even if the process or the machine stops meanwhile."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import StoreError


@contextlib.contextmanager
def whole_file(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Write a file under a temporary name; when the block ends without an error, sync it and rename it to ``path``.

    Raises:
        OSError: it cannot be written. An earlier file at ``path`` is unchanged, and the temporary file is removed.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
        _force_name(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Write a file, whole or not at all, even if the machine stops.

    Raises:
        OSError: it cannot be written. An earlier file at ``path`` is unchanged.
    """
    with whole_file(path, mode=mode) as handle:
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
        _force_name(path.parent)
    return path.read_bytes()


def _force_name(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
