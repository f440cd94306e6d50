"""Checkpoint files: a state that only a sandbox may look into, signed with this host's key.

    MAGIC | length (4 bytes) | header (JSON) | state … | footer (JSON) | length (4 bytes) | MAC (32 bytes)

The MAC is HMAC-SHA-256 over all before it. Nothing but the magic and the sizes is looked at before it was checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.errors import (
    CheckpointDamagedError,
    CheckpointFormatError,
    CheckpointMissingError,
    CheckpointTooLargeError,
    StoreError,
)
from orchestrator.store.wholefile import whole_file, write_once

_KIND = b"CELLBLOCK CHECKPOINT "
MAGIC = _KIND + b"1\n"
_KEY = 32  # bytes
_MAC = 32  # bytes
_PIECE = 1024 * 1024  # bytes
_GRACE = 86_400.0  # seconds in which a file may be without its entry; the clock may be set by an hour meanwhile
_MEGABYTE = 1024 * 1024


class CheckpointWriter:
    """Takes the state of one checkpoint.

    Args:
        limit: bytes that it may have.
    """

    def __init__(self, file: BinaryIO, header: dict[str, Any], key: bytes, limit: int) -> None:
        self._file = file
        self._header = header
        self._key = key
        self._limit = limit
        self.restart()

    def restart(self) -> None:
        """Forget what was written."""
        self._file.seek(0)
        self._file.truncate()
        self._mac = hmac.new(self._key, digestmod=hashlib.sha256)
        self._size = 0
        encoded = json.dumps(self._header).encode()
        self._put(MAGIC + struct.pack(">I", len(encoded)) + encoded)

    def write(self, piece: bytes) -> None:
        """Add a piece of the state.

        Raises:
            CheckpointTooLargeError: it would exceed the limit.
            OSError: it cannot be written.
        """
        self._size += len(piece)
        if self._size > self._limit:
            limit_mb = self._limit // _MEGABYTE
            raise CheckpointTooLargeError(
                f"the session's state is larger than {limit_mb} MiB.",
                limit_mb=limit_mb,
                remedy="Raise [sessions] checkpoint_mb in the policy, or delete large variables and files.",
            )
        self._put(piece)

    def finish(self, footer: dict[str, Any]) -> None:
        encoded = json.dumps(footer).encode()
        self._put(encoded + struct.pack(">I", len(encoded)))
        self._file.write(self._mac.digest())

    def _put(self, data: bytes) -> None:
        self._mac.update(data)
        self._file.write(data)


class CheckpointReader:
    """A checkpoint whose MAC is right.

    Attributes:
        header, footer: as they were given when it was written.
        size: bytes of the state.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        (length,) = struct.unpack(">I", _read_at(descriptor, len(MAGIC), 4))
        self._start = len(MAGIC) + 4 + length
        (footer,) = struct.unpack(">I", _read_at(descriptor, size - _MAC - 4, 4))
        self._end = size - _MAC - 4 - footer
        self.header: dict[str, Any] = json.loads(_read_at(descriptor, len(MAGIC) + 4, length))
        self.footer: dict[str, Any] = json.loads(_read_at(descriptor, self._end, footer))
        self.size = self._end - self._start

    def piece(self, offset: int) -> bytes:
        """Return up to 1 MiB of the state from ``offset`` on; b"" at its end."""
        return _read_at(self._descriptor, self._start + offset, min(_PIECE, max(0, self.size - offset)))


class CheckpointFiles:
    """The checkpoints of one data folder, and the key that signs them.

    Args:
        folder: the data folder.

    Raises:
        StoreError: the key cannot be read or made, or is none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "checkpoints"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._key = write_once(folder / "key", secrets.token_bytes(_KEY))
        except OSError as error:
            raise StoreError(
                f"the data folder {folder} cannot be used: {error.strerror}.",
                remedy="Set CELLBLOCK_DATA_DIR to a folder that this user can write to.",
            ) from error
        if len(self._key) != _KEY:
            raise StoreError(
                f"{folder / 'key'} is no key: it has {len(self._key)} bytes, not {_KEY}.",
                remedy="Put it back from a backup; or remove it, and with it the use of all checkpoints.",
            )

    def path(self, checkpoint_id: str) -> Path:
        return self._folder / checkpoint_id

    def ids(self) -> set[str]:
        """Return the ids of all files."""
        return {file.name for file in self._folder.iterdir() if not file.name.startswith(".")}

    @contextmanager
    def writing(self, checkpoint_id: str, header: dict[str, Any], limit: int) -> Iterator[CheckpointWriter]:
        """Write one: it is there, whole, when the block ends well, and else nothing of it is.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            with whole_file(self.path(checkpoint_id), mode=0o600) as file:
                yield CheckpointWriter(file, header, self._key, limit)
        except OSError as error:
            if isinstance(error, StoreError) or not error.errno:
                raise
            raise StoreError(
                f"the checkpoint cannot be written: {error.strerror}; nothing of it is left.",
                remedy="See that CELLBLOCK_DATA_DIR has room.",
            ) from error

    @contextmanager
    def reading(self, path: Path) -> Iterator[CheckpointReader]:
        """Open one, once its MAC was found right.

        Raises:
            CheckpointMissingError: there is none.
            CheckpointDamagedError: it is truncated or altered, or was signed with another key.
            CheckpointFormatError: another version has written it.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or str(error)
            raise CheckpointMissingError(f"there is no checkpoint {path}: {said}.", checkpoint=path.name) from error
        try:
            try:
                reader = CheckpointReader(descriptor, self._check(descriptor, path))
            except (OSError, ValueError, struct.error) as error:
                raise _damaged(path, f"it cannot be read ({error})") from error
            yield reader
        finally:
            os.close(descriptor)

    def remove(self, checkpoint_id: str) -> None:
        """Remove one; fine when it is gone already."""
        self.path(checkpoint_id).unlink(missing_ok=True)

    def sweep(self, known: set[str]) -> None:
        """Remove the files that a killed process left behind: those without an entry in the history, after a day."""
        for file in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                if file.name not in known and time.time() - file.stat().st_mtime > _GRACE:
                    file.unlink()

    def _check(self, descriptor: int, path: Path) -> int:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise _damaged(path, "it is no regular file")
        magic = _read_at(descriptor, 0, len(MAGIC))
        if magic != MAGIC:
            if magic.startswith(_KIND):
                raise CheckpointFormatError(
                    f"{path.name} was written by another version of Cellblock.",
                    checkpoint=path.name,
                    remedy="Use the version that wrote it.",
                )
            raise _damaged(path, "it does not begin like one")
        if info.st_size < len(MAGIC) + 4 + 2 + 2 + 4 + _MAC:
            raise _damaged(path, "it is cut off")
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        offset, end = 0, info.st_size - _MAC
        while offset < end:
            piece = _read_at(descriptor, offset, min(_PIECE, end - offset))
            if not piece:
                raise _damaged(path, "it is cut off")
            mac.update(piece)
            offset += len(piece)
        if not hmac.compare_digest(mac.digest(), _read_at(descriptor, end, _MAC)):
            raise _damaged(path, "it was altered or cut off, or signed on another host")
        return info.st_size


def _damaged(path: Path, why: str) -> CheckpointDamagedError:
    return CheckpointDamagedError(
        f"{path.name} is no sound checkpoint: {why}.", checkpoint=path.name, remedy="Use another one."
    )


def _read_at(descriptor: int, offset: int, length: int) -> bytes:
    return os.pread(descriptor, length, offset)
