"""A blob store in memory: it shows that checkpoints and large outputs need no folder."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from orchestrator.store.blobs import BlobReader, BlobWriter, BlobWriting, checked_name


class _Writer:
    def __init__(self) -> None:
        self.content = b""

    def write(self, piece: bytes) -> None:
        self.content += piece

    def restart(self) -> None:
        self.content = b""


class _Reader:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


class MemoryBlobs:
    """A ``BlobStore`` whose blobs go with the process."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[bytes, float]] = {}  # content, and when it was written or renewed

    @contextmanager
    def writing(self, name: str) -> Iterator[BlobWriter]:
        writer = _Writer()
        yield writer
        self._blobs[checked_name(name)] = writer.content, time.monotonic()

    @contextmanager
    def writing_together(self) -> Iterator[BlobWriting]:
        written: dict[str, _Writer] = {}

        @contextmanager
        def writing(name: str) -> Iterator[BlobWriter]:
            yield written.setdefault(checked_name(name), _Writer())

        yield writing
        self._blobs |= {name: (writer.content, time.monotonic()) for name, writer in written.items()}

    @contextmanager
    def reading(self, name: str) -> Iterator[BlobReader]:
        yield _Reader(self._content(name))

    def size(self, name: str) -> int:
        return len(self._content(name))

    def renew(self, name: str) -> bool:
        if checked_name(name) in self._blobs:
            self._blobs[name] = self._content(name), time.monotonic()
        return name in self._blobs

    def delete(self, name: str) -> None:
        self._blobs.pop(checked_name(name), None)

    def delete_under(self, folder: str) -> None:
        for name in [name for name in self._blobs if name.startswith(f"{checked_name(folder)}/")]:
            del self._blobs[name]

    def names(self) -> set[str]:
        return set(self._blobs)

    def sweep(self, needed: Collection[str], older_than: float) -> int:
        freed = 0
        for name in list(self._blobs):
            if name in needed or name not in self._blobs:
                continue
            content, at = self._blobs[name]
            if time.monotonic() - at > older_than and self._blobs.pop(name, None) is not None:
                freed += len(content)
        return freed

    def _content(self, name: str) -> bytes:
        if checked_name(name) not in self._blobs:
            raise FileNotFoundError(name)
        return self._blobs[name][0]
