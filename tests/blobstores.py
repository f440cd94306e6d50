"""Every kind of blob store, for the tests of what all of them promise; and a program that writes to one and is killed.

A place is text, so that another process can open the same store: ``folder:/path``, ``objects:/path`` (an object store
over a folder), ``database:URL`` and ``s3:BUCKET/PREFIX``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from obstore.store import LocalStore, MemoryStore

from orchestrator.limits import MIB
from orchestrator.store.blobs import BlobStore, FolderBlobs
from orchestrator.store.database import Database
from orchestrator.store.objectblobs import ObjectBlobs
from orchestrator.store.objectclient import ObjectClient
from orchestrator.store.postgresblobs import PostgresBlobs
from tests.memoryblobs import MemoryBlobs
from tests.objectserver import ObjectServer

PROCESSES = ("folder", "objects", "database", "s3")  # kinds that several processes can share
KINDS = (*PROCESSES, "memory", "memory objects")


@dataclass(frozen=True)
class Place:
    """A blob store.

    Attributes:
        text: the place, for other processes.
        grain: seconds by which its clock counts.
    """

    blobs: BlobStore
    text: str
    grain: float


@contextlib.contextmanager
def new_store(kind: str, folder: Path, postgres_url: str = "", server: ObjectServer | None = None) -> Iterator[Place]:
    """Make an empty store of a kind.

    Args:
        server: of the kind "s3"; its variables are in the environment.
    """
    if kind == "memory":
        yield Place(MemoryBlobs(), "", 0.0)
    elif kind == "memory objects":
        yield Place(ObjectBlobs(ObjectClient(MemoryStore(), "memory"), "blobs", fresh=0.0), "", 0.0)
    else:
        rest = str(folder / "store")
        if kind == "database":
            rest = postgres_url
        elif kind == "s3":
            rest = f"tests-{uuid.uuid4().hex}/prefix"
            assert server is not None
            server.make_bucket(rest.partition("/")[0])
        text = f"{kind}:{rest}"
        with opened(text) as blobs:
            blobs.delete_under("s")
            for name in blobs.names():
                blobs.delete(name)
            yield Place(blobs, text, 1.0 if kind == "s3" else 0.0)


@contextlib.contextmanager
def opened(text: str) -> Iterator[BlobStore]:
    """Open the store of a place."""
    kind, _, rest = text.partition(":")
    if kind == "folder":
        yield FolderBlobs(Path(rest))
    elif kind == "objects":
        store = LocalStore(rest, automatic_cleanup=True, mkdir=True)
        yield ObjectBlobs(ObjectClient(store, rest), "blobs", fresh=0.0)
    elif kind == "s3":
        yield ObjectBlobs(ObjectClient.of_url(f"s3://{rest}"), "blobs", fresh=0.0)
    else:
        database = Database(rest)
        try:
            database.migrate()
            yield PostgresBlobs(database, "blobs")
        finally:
            database.close()


def put(blobs: BlobStore, name: str, *pieces: bytes) -> None:
    with blobs.writing(name) as blob:
        for piece in pieces:
            blob.write(piece)


def content(blobs: BlobStore, name: str) -> bytes:
    with blobs.reading(name) as blob:
        return blob.read(0, blob.size)


def half_written(text: str, megabytes: str) -> None:
    """Write half of a blob, say so, and wait to be killed."""
    with opened(text) as blobs, blobs.writing("s/killed") as blob:
        for _ in range(int(megabytes) // 2):
            blob.write(os.urandom(MIB))
        print("half", flush=True)
        sys.stdin.read()


def measured(text: str, megabytes: str) -> None:
    """Write and read a blob, and print by how many MiB the process has grown at most."""
    with opened(text) as blobs:
        put(blobs, "s/warm", b"1")  # what a first call imports and connects
        content(blobs, "s/warm")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew; until now it is that of the parent
        before = _peak()
        piece = os.urandom(MIB)
        put(blobs, "s/large", *(piece for _ in range(int(megabytes))))
        offset = 100  # as a checkpoint's state begins behind its header
        with blobs.reading("s/large") as blob:
            assert blob.size == int(megabytes) * MIB
            while found := blob.read(offset, MIB):
                assert found == (piece + piece)[offset % MIB :][: len(found)]
                offset += len(found)
            assert offset == blob.size
        print(_peak() - before)


def _peak() -> int:
    """Return the most MiB of memory that this process has had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


if __name__ == "__main__":
    {"half": half_written, "measure": measured}[sys.argv[1]](*sys.argv[2:])
