"""Blobs in an object store: each an object that never changes, under the blob's name and a number.

    FOLDER/NAME/.NUMBER-RANDOM

A blob is replaced by an object with the next number, and renewed by a copy with the next number. The highest number
counts. So nothing is changed while another host reads it, and ``sweep`` never deletes what was renewed meanwhile.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from orchestrator.limits import MIB
from orchestrator.store.blobs import BlobReader, BlobWriter, BlobWriting, checked_name

if TYPE_CHECKING:
    from obstore import ObjectMeta

    from orchestrator.store.objectclient import ObjectClient

_FRESH = 3600.0  # seconds in which a blob need not be renewed: every sweep spares it for a day
_AHEAD = 8 * MIB  # bytes that one request reads, at least: a checkpoint is read 1 MiB at a time
_VERSION = re.compile(r"\.(\d{10})-[0-9a-f]{8}")


class ObjectBlobs:
    """A ``BlobStore`` in an object store.

    A writer that is killed leaves nothing that can be seen. The store keeps the parts that it has sent, until the
    store's own rule for unfinished uploads deletes them.

    Args:
        client: of the store.
        folder: the part of the store that has these blobs.
        fresh: seconds in which ``renew`` leaves a blob as it is; far fewer than any sweep spares.
    """

    def __init__(self, client: ObjectClient, folder: str, fresh: float = _FRESH) -> None:
        self._client = client
        self._folder = checked_name(folder)
        self._fresh = fresh

    @contextmanager
    def writing(self, name: str) -> Iterator[BlobWriter]:
        earlier = self._versions(name)
        blob = _Writer(self._client, _next(self._key(name), earlier))
        try:
            yield blob
            blob.finish()
        except BaseException:
            blob.abandon()
            raise
        self._client.delete(earlier)

    @contextmanager
    def writing_together(self) -> Iterator[BlobWriting]:
        with ExitStack() as blobs:

            @contextmanager
            def writing(name: str) -> Iterator[BlobWriter]:
                yield blobs.enter_context(self.writing(name))

            yield writing

    @contextmanager
    def reading(self, name: str) -> Iterator[BlobReader]:
        newest = self._newest(name)
        yield _Reader(self._client, newest["path"], newest["size"])

    def size(self, name: str) -> int:
        return self._newest(name)["size"]

    def renew(self, name: str) -> bool:
        objects = self._objects(name)
        if not objects:
            return False
        if self._client.now() - objects[-1]["last_modified"].timestamp() < self._fresh:
            return True
        earlier = [each["path"] for each in objects]
        try:
            self._client.copy(earlier[-1], _next(self._key(name), earlier))
        except FileNotFoundError:  # it was deleted, replaced or renewed meanwhile
            return bool(self._objects(name))
        self._client.delete(earlier)
        return True

    def delete(self, name: str) -> None:
        self._client.delete(self._versions(name))

    def delete_under(self, folder: str) -> None:
        self._client.delete([found["path"] for found in self._client.under(self._key(folder))])

    def names(self) -> set[str]:
        return {self._name(path) for path, _, _ in self._all()}

    def sweep(self, needed: Collection[str], older_than: float) -> int:
        old: list[tuple[str, int]] = []
        newest: dict[str, str] = {}
        before = self._client.now() - older_than
        for path, size, written in self._all():
            name = self._name(path)
            newest[name] = max(path, newest.get(name, path))
            if written < before:
                old.append((path, size))
        # A writer that was killed at its very end has not deleted the object that it replaced.
        swept = [(path, size) for path, size in old if (name := self._name(path)) not in needed or path != newest[name]]
        self._client.delete([path for path, _ in swept])
        return sum(size for _, size in swept)

    def _all(self) -> Iterator[tuple[str, int, float]]:
        """Yield path, size and time of every object of a blob."""
        for found in self._client.under(self._folder):
            if _is_version(found["path"]):
                yield found["path"], found["size"], found["last_modified"].timestamp()

    def _objects(self, name: str) -> list[ObjectMeta]:
        """Return the objects of a blob, the one that counts last."""
        found = self._client.directly_in(self._key(name))
        return sorted((each for each in found if _is_version(each["path"])), key=lambda each: each["path"])

    def _versions(self, name: str) -> list[str]:
        return [each["path"] for each in self._objects(name)]

    def _newest(self, name: str) -> ObjectMeta:
        objects = self._objects(name)
        if not objects:
            raise FileNotFoundError(2, "the object store has no blob of this name", name)
        return objects[-1]

    def _key(self, name: str) -> str:
        return f"{self._folder}/{checked_name(name)}"

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self._folder}/").rpartition("/")[0]


class _Writer:
    """Writes one object. Nothing of it appears before ``finish``."""

    def __init__(self, client: ObjectClient, key: str) -> None:
        self._client = client
        self._key = key
        self._file = client.write(key)

    def write(self, piece: bytes) -> None:
        self._file.write(piece)

    def restart(self) -> None:
        self._file.abandon()
        self._file = self._client.write(self._key)

    def finish(self) -> None:
        self._file.finish()

    def abandon(self) -> None:
        self._file.abandon()


class _Reader:
    def __init__(self, client: ObjectClient, key: str, size: int) -> None:
        self.size = size
        self._client = client
        self._key = key
        self._start, self._part = 0, b""  # what was read last

    def read(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        if offset < self._start or offset + length > self._start + len(self._part):
            self._part = b""  # it is released before the next one is there
            self._part = self._client.read(self._key, offset, min(max(length, _AHEAD), self.size - offset))
            self._start = offset
        return self._part[offset - self._start :][:length]


def _is_version(path: str) -> bool:
    return _VERSION.fullmatch(path.rpartition("/")[2]) is not None


def _next(key: str, earlier: Sequence[str]) -> str:
    """Return the key of the object that replaces ``earlier`` ones."""
    last = _VERSION.fullmatch(earlier[-1].rpartition("/")[2]) if earlier else None
    return f"{key}/.{int(last[1]) + 1 if last else 1:010d}-{uuid.uuid4().hex[:8]}"
