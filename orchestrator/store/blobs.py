"""Blobs: large pieces of data under a name, each whole or not there at all. Checkpoints and large outputs are blobs.

``BlobStore`` is the interface. ``FolderBlobs`` keeps blobs in a folder, ``PostgresBlobs`` in a database and
``ObjectBlobs`` in an object store.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from orchestrator.store.wholefile import whole_files

_PART = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")
_LONGEST_NAME = 500  # characters


def checked_name(name: str) -> str:
    """Return the name of a blob, or of a folder of blobs.

    Raises:
        ValueError: this cannot be a name.
    """
    if len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise ValueError(f"{name[:100]!r} cannot be the name of a blob")
    return name


class BlobWriter(Protocol):
    """Takes the pieces of one blob."""

    def write(self, piece: bytes) -> None:
        """Append a piece.

        Raises:
            OSError: the store does not take it.
        """

    def restart(self) -> None:
        """Discard all pieces."""


class BlobReader(Protocol):
    """Reads one blob."""

    @property
    def size(self) -> int:
        """The number of bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from ``offset``; fewer at the blob's end, b"" behind it.

        Raises:
            OSError: the blob cannot be read.
        """


class BlobWriting(Protocol):
    """Writes one blob of several that are written together."""

    def __call__(self, name: str) -> AbstractContextManager[BlobWriter]:
        """Write a blob. It appears with the others.

        Raises:
            OSError: the store does not take the blob.
        """


class BlobStore(Protocol):
    """Blobs by name. All methods block, and processes may share a store.

    A name is made of ASCII letters, digits, "-", "_" and ".", with "/" between its parts. No part begins with ".".
    Every method raises ValueError for any other name, and OSError if the store does not answer within a bounded time.
    """

    def writing(self, name: str) -> AbstractContextManager[BlobWriter]:
        """Write a blob. It appears, whole and on the disk, when the block ends without an error; else nothing remains.

        An earlier blob of this name is replaced.

        Raises:
            OSError: the store does not take the blob.
        """

    def writing_together(self) -> AbstractContextManager[BlobWriting]:
        """Write several blobs: each appears, whole and on the disk, when the block ends without an error.

        Much faster than one after another where the disk is waited for. After an error some may have appeared.

        Raises:
            OSError: the store does not take one of the blobs.
        """

    def reading(self, name: str) -> AbstractContextManager[BlobReader]:
        """Open a blob.

        Raises:
            OSError: it cannot be opened; FileNotFoundError: there is none of this name.
            ValueError: this cannot be a name.
        """

    def size(self, name: str) -> int:
        """Return the number of bytes of a blob.

        Raises:
            FileNotFoundError: there is none of this name.
        """

    def renew(self, name: str) -> bool:
        """Let a blob that is about to be needed survive the next ``sweep`` of any process.

        Returns:
            False if there is none of this name.
        """

    def delete(self, name: str) -> None:
        """Delete a blob. Idempotent."""

    def delete_under(self, folder: str) -> None:
        """Delete every blob whose name begins with ``folder`` and "/", and whatever a killed process left of them.

        Raises:
            OSError: one cannot be deleted.
        """

    def names(self) -> set[str]:
        """Return the names of all blobs."""

    def sweep(self, needed: Collection[str], older_than: float) -> int:
        """Delete the blobs that are not ``needed``, and whatever a killed process left of others.

        Args:
            older_than: seconds by the store's clock, since a blob was written or renewed. A younger blob is kept,
                because its row may not be written yet.

        Returns:
            The number of bytes deleted.

        Raises:
            OSError: something cannot be deleted.
        """


class FolderBlobs:
    """A ``BlobStore`` in a local folder: a file for each blob.

    Args:
        folder: made, if it is missing, with the first blob.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def writing(self, name: str) -> Iterator[BlobWriter]:
        with self.writing_together() as writing, writing(name) as blob:
            yield blob

    @contextmanager
    def writing_together(self) -> Iterator[BlobWriting]:
        with whole_files() as files:

            @contextmanager
            def writing(name: str) -> Iterator[BlobWriter]:
                path = self._path(name)
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with files.writing(path, mode=0o600) as file:
                    yield _FileWriter(file)

            yield writing

    def reading(self, name: str) -> AbstractContextManager[BlobReader]:
        return reading_file(self._path(name))

    def size(self, name: str) -> int:
        return self._path(name).stat().st_size

    def renew(self, name: str) -> bool:
        try:
            os.utime(self._path(name))
        except FileNotFoundError:
            return False
        return True

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def delete_under(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._path(folder))

    def names(self) -> set[str]:
        return {self._name(file) for file in self._files() if not file.name.startswith(".")}

    def sweep(self, needed: Collection[str], older_than: float) -> int:
        if not self.folder.is_dir():
            return 0
        freed, now = 0, self._now()
        for file in self._files():
            if self._name(file) in needed:
                continue
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                info = file.stat()
                if now - info.st_mtime > older_than:
                    file.unlink()
                    freed += info.st_size
        return freed

    def _now(self) -> float:
        """Return the time by the clock that dates the folder's files: that of a file server, if it is on one."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            return os.fstat(file.fileno()).st_mtime

    def _path(self, name: str) -> Path:
        return self.folder / checked_name(name)

    def _files(self) -> Iterator[Path]:
        """Yield the blobs' files, and the partial ones, whose name begins with "."."""
        return (file for file in self.folder.rglob("*") if not file.is_dir())

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()


@contextmanager
def reading_file(path: Path) -> Iterator[BlobReader]:
    """Read any file of this host like a blob.

    Raises:
        OSError: it cannot be opened.
    """
    # O_NONBLOCK: opening a FIFO does not wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield _FileReader(descriptor)
    finally:
        os.close(descriptor)


class _FileWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, piece: bytes) -> None:
        self._file.write(piece)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()


class _FileReader:
    def __init__(self, descriptor: int) -> None:
        info = os.fstat(descriptor)
        self.size = info.st_size
        self._descriptor = descriptor
        self._is_regular = stat.S_ISREG(info.st_mode)

    def read(self, offset: int, length: int) -> bytes:
        if not self._is_regular:
            raise OSError("it is not a regular file")
        return os.pread(self._descriptor, length, offset)
