"""Checkpoint files: the state of a session, which only a sandbox unpacks, signed with the key of this host, or of
all hosts that share a store.

    MAGIC | length (4 bytes) | header (JSON) | state … | footer (JSON) | length (4 bytes) | MAC (32 bytes)

The MAC is the HMAC-SHA-256 of everything before it. Until the MAC is checked, only the magic and the size are
read. What is read afterwards is what was checked.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import struct
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import (
    CheckpointDamagedError,
    CheckpointFormatError,
    CheckpointMissingError,
    CheckpointTooLargeError,
    StoreError,
)
from orchestrator.limits import MIB
from orchestrator.store.blobs import BlobReader, BlobStore, BlobWriter, FolderBlobs, reading_file
from orchestrator.store.wholefile import write_once

_KIND = b"CELLBLOCK CHECKPOINT "
MAGIC = _KIND + b"1\n"
_KEY = 32  # bytes
_MAC = 32  # bytes
_PIECE = MIB  # bytes
_LEAST = len(MAGIC) + 4 + len(b"{}") + len(b"{}") + 4 + _MAC  # bytes of a file without any state
_GRACE = 86_400.0  # seconds for which a file may have no row yet; the clock may be set by an hour meanwhile


class CheckpointWriter:
    """Writes one checkpoint.

    Args:
        blob: takes the file.
        limit: the most bytes that the state may have.
    """

    def __init__(self, blob: BlobWriter, header: dict[str, Any], key: bytes, limit: int) -> None:
        self._blob = blob
        self._header = header
        self._key = key
        self._limit = limit
        self._begin()

    def restart(self) -> None:
        """Discard the state written so far.

        Raises:
            OSError: the store does not take it.
        """
        self._blob.restart()
        self._begin()

    def write(self, piece: bytes) -> None:
        """Append a piece of the state.

        Raises:
            CheckpointTooLargeError: the state exceeds the limit.
            OSError: the store does not take it.
        """
        self._size += len(piece)
        if self._size > self._limit:
            limit_mb = self._limit // MIB
            raise CheckpointTooLargeError(
                f"the session's state is larger than {limit_mb} MiB.",
                limit_mb=limit_mb,
                remedy="Raise [sessions] checkpoint_mb in the policy, or delete large variables and files.",
            )
        self._put(piece)

    def finish(self, footer: dict[str, Any]) -> None:
        """Write what comes behind the state.

        Raises:
            OSError: the store does not take it.
        """
        encoded = json.dumps(footer).encode()
        self._put(encoded + struct.pack(">I", len(encoded)))
        self._blob.write(self._mac.digest())

    def _begin(self) -> None:
        self._mac = hmac.new(self._key, digestmod=hashlib.sha256)
        self._size = 0
        encoded = json.dumps(self._header).encode()
        self._put(MAGIC + struct.pack(">I", len(encoded)) + encoded)

    def _put(self, data: bytes) -> None:
        self._mac.update(data)
        self._blob.write(data)


class CheckpointReader:
    """Reads one checkpoint. ``CheckpointFiles.reading`` makes it, once the MAC is checked.

    Attributes:
        header, footer: as given to the writer.
        size: the number of bytes of the state.
    """

    def __init__(self, blob: BlobReader) -> None:
        self._blob = blob
        (length,) = struct.unpack(">I", blob.read(len(MAGIC), 4))
        self._start = len(MAGIC) + 4 + length
        (footer,) = struct.unpack(">I", blob.read(blob.size - _MAC - 4, 4))
        self._end = blob.size - _MAC - 4 - footer
        self.header: dict[str, Any] = json.loads(blob.read(len(MAGIC) + 4, length))
        self.footer: dict[str, Any] = json.loads(blob.read(self._end, footer))
        self.size = self._end - self._start

    def piece(self, offset: int) -> bytes:
        """Return up to 1 MiB of the state from ``offset``; b"" at its end.

        Raises:
            CheckpointDamagedError: it was changed since its MAC was checked.
            OSError: it cannot be read.
        """
        return self._blob.read(self._start + offset, min(_PIECE, max(0, self.size - offset)))


class CheckpointFiles:
    """The checkpoints of one data folder or of a shared store, and the key that signs them.

    Args:
        folder: the data folder.
        blobs: keeps the files; default: ``checkpoints/`` in the data folder.
        key: signs them; default: the data folder's own key.

    Raises:
        StoreError: the key cannot be read or made, or has not 32 bytes.
    """

    def __init__(self, folder: Path, blobs: BlobStore | None = None, key: bytes | None = None) -> None:
        self._folder = folder / "checkpoints"
        self._blobs: BlobStore = blobs or FolderBlobs(self._folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._key = key or write_once(folder / "key", secrets.token_bytes(_KEY))
        except OSError as error:
            raise StoreError(
                f"the data folder {folder} cannot be used: {error.strerror}.",
                remedy="Set CELLBLOCK_DATA_DIR to a folder that this user can write to.",
            ) from error
        if len(self._key) != _KEY:
            raise StoreError(
                f"{folder / 'key'} is not a key: it has {len(self._key)} bytes, not {_KEY}.",
                remedy="Restore the file from a backup. If you remove it, no existing checkpoint can be used again.",
            )

    def path(self, checkpoint_id: str) -> Path:
        """Return the path by which ``reading`` finds a checkpoint. In a shared store there is no file at this path."""
        return self._folder / checkpoint_id

    def ids(self) -> set[str]:
        """Return the ids of all checkpoints that have a file."""
        return self._blobs.names()

    def size(self, checkpoint_id: str) -> int:
        """Return the number of bytes of a checkpoint's file.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._blobs.size(checkpoint_id)

    @contextmanager
    def writing(self, checkpoint_id: str, header: dict[str, Any], limit: int) -> Iterator[CheckpointWriter]:
        """Write a checkpoint. Its file appears, whole, when the block ends without an error; else nothing remains.

        Args:
            limit: the most bytes that the state may have.

        Raises:
            StoreError: the file cannot be written.
        """
        try:
            with self._blobs.writing(checkpoint_id) as blob:
                yield CheckpointWriter(blob, header, self._key, limit)
        except OSError as error:
            if isinstance(error, StoreError) or not error.errno:
                raise
            raise StoreError(
                f"the checkpoint cannot be written: {error.strerror}; nothing of it is left.",
                remedy="Check that CELLBLOCK_DATA_DIR has room.",
            ) from error

    @contextmanager
    def reading(self, path: Path) -> Iterator[CheckpointReader]:
        """Open a checkpoint, and check its MAC.

        Args:
            path: as ``path`` returns it, or any other file of this host.

        Raises:
            CheckpointMissingError: there is no such file.
            CheckpointDamagedError: the file is truncated or altered, or signed with another key.
            CheckpointFormatError: another version of Cellblock has written it.
        """
        is_mine = path.parent == self._folder
        with ExitStack() as stack:
            try:
                blob = stack.enter_context(self._blobs.reading(path.name) if is_mine else reading_file(path))
            except (OSError, ValueError) as error:
                said = getattr(error, "strerror", None) or str(error)
                raise CheckpointMissingError(f"there is no checkpoint {path}: {said}.", checkpoint=path.name) from error
            yield self._checked(blob, path.name)

    def remove(self, checkpoint_id: str) -> None:
        """Delete a checkpoint's file. Idempotent."""
        self._blobs.delete(checkpoint_id)

    def sweep(self, known: Collection[str]) -> None:
        """Delete what a killed process left: the files that are not of ``known`` checkpoints, when they are a day old.

        Raises:
            OSError: one cannot be deleted.
        """
        self._blobs.sweep(known, _GRACE)

    def _checked(self, blob: BlobReader, name: str) -> CheckpointReader:
        try:
            checked = _CheckedBlob(blob, name)
            self._check(checked, name)
            return CheckpointReader(checked)
        except (OSError, ValueError, struct.error) as error:
            raise _damaged(name, f"it cannot be read ({error})") from error

    def _check(self, blob: _CheckedBlob, name: str) -> None:
        magic = blob.unchecked(0, len(MAGIC))
        if magic != MAGIC:
            if magic.startswith(_KIND):
                raise CheckpointFormatError(
                    f"{name} was written by another version of Cellblock.",
                    checkpoint=name,
                    remedy="Use the version that wrote it.",
                )
            raise _damaged(name, "it does not begin like one")
        if blob.size < _LEAST:
            raise _damaged(name, "it is truncated")
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        end = blob.size - _MAC
        for number, piece in enumerate(blob.pieces()):
            mac.update(piece[: max(0, end - number * _PIECE)])
        if not hmac.compare_digest(mac.digest(), blob.read(end, _MAC)):
            raise _damaged(name, "it was altered or truncated, or signed on another host")


class _CheckedBlob:
    """Reads a blob again only as it was when its MAC was checked: who writes the store could change it in between."""

    def __init__(self, blob: BlobReader, name: str) -> None:
        self.size = blob.size
        self.unchecked = blob.read
        self._name = name
        self._digests: list[bytes] = []  # of each piece
        self._number, self._piece = -1, b""  # the piece that was read last

    def pieces(self) -> Iterator[bytes]:
        """Yield the blob, for its MAC."""
        for offset in range(0, self.size, _PIECE):
            piece = self.unchecked(offset, _PIECE)
            if len(piece) != min(_PIECE, self.size - offset):
                raise _damaged(self._name, "it is truncated")
            self._digests.append(hashlib.sha256(piece).digest())
            yield piece

    def read(self, offset: int, length: int) -> bytes:
        """Return what ``pieces`` has yielded.

        Raises:
            CheckpointDamagedError: it was changed since.
            OSError: it cannot be read.
        """
        end, parts = min(offset + length, self.size), []
        while offset < end:
            number, start = divmod(offset, _PIECE)
            if number != self._number:
                piece = self.unchecked(number * _PIECE, _PIECE)
                if hashlib.sha256(piece).digest() != self._digests[number]:
                    raise _damaged(self._name, "it was changed while it was read")
                self._number, self._piece = number, piece
            parts.append(self._piece[start : start + end - offset])
            offset += len(parts[-1])
        return b"".join(parts)


def _damaged(name: str, why: str) -> CheckpointDamagedError:
    return CheckpointDamagedError(
        f"{name} is not a valid checkpoint: {why}.", checkpoint=name, remedy="Use another checkpoint."
    )
