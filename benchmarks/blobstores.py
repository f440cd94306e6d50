"""`make blobs`: how fast checkpoints of 1, 50 and 500 MB are written, checked and read in each kind of blob store.

The PostgreSQL and the S3 server are the tests' own, on the same machine: what a network adds is not in the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from orchestrator.limits import MIB
from orchestrator.store.blobs import BlobStore
from orchestrator.store.checkpointfiles import CheckpointFiles
from tests.blobstores import new_store
from tests.objectserver import object_server
from tests.postgres import postgres_server

_KINDS = ("folder", "database", "s3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 50, 500], help="MiB")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    print("| MiB | store | write, MB/s | beside the folder | check and read, MB/s | beside the folder |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, _stores(Path(name)) as stores:  # on a disk
        for size in chosen.sizes:
            _compare(stores, Path(name), size, chosen.rounds)


@contextlib.contextmanager
def _stores(folder: Path) -> Iterator[dict[str, BlobStore]]:
    """Open an empty store of each kind."""
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(postgres_server(durable=True))
        server = stack.enter_context(object_server())
        os.environ.update(server.variables)
        yield {kind: stack.enter_context(new_store(kind, folder, url, server)).blobs for kind in _KINDS}


def _compare(stores: dict[str, BlobStore], folder: Path, size: int, rounds: int) -> None:
    """Let the stores take turns, and print the medians."""
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in stores}
    for _ in range(rounds * (10 if size == 1 else 1)):
        for kind, blobs in stores.items():
            times[kind].append(_measure(CheckpointFiles(folder / "data", blobs), size))
    speeds = {kind: [size * MIB / 1e6 / statistics.median(each) for each in zip(*found, strict=True)]
              for kind, found in times.items()}  # fmt: skip
    for kind, (write, read) in speeds.items():
        beside = [f"{mine / other:.2f}" for mine, other in zip((write, read), speeds["folder"], strict=True)]
        print(f"| {size} | {kind} | {write:.0f} | {beside[0]} | {read:.0f} | {beside[1]} |", flush=True)


def _measure(files: CheckpointFiles, size: int) -> tuple[float, float]:
    """Write a checkpoint and read it. Returns the seconds of each."""
    piece, checkpoint = os.urandom(MIB), uuid.uuid4().hex
    began = time.monotonic()
    with files.writing(checkpoint, {}, size * MIB) as writer:
        for _ in range(size):
            writer.write(piece)
        writer.finish({})
    written = time.monotonic()
    with files.reading(files.path(checkpoint)) as reader:
        offset = 0
        while found := reader.piece(offset):
            offset += len(found)
        assert offset == size * MIB
    read = time.monotonic()
    files.remove(checkpoint)
    return written - began, read - written


if __name__ == "__main__":
    main()
