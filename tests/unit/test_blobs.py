"""Every blob store keeps the same promises: a folder, and one in memory that only follows the interface."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from orchestrator.errors import CheckpointDamagedError, CheckpointMissingError
from orchestrator.store.blobs import BlobStore, FolderBlobs
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.payloads import Payloads
from tests.memoryblobs import MemoryBlobs


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return FolderBlobs(tmp_path / "blobs") if request.param == "folder" else MemoryBlobs()


def put(blobs: BlobStore, name: str, *pieces: bytes) -> None:
    with blobs.writing(name) as blob:
        for piece in pieces:
            blob.write(piece)


def content(blobs: BlobStore, name: str) -> bytes:
    with blobs.reading(name) as blob:
        return blob.read(0, blob.size)


def test_a_blob_is_read_as_it_was_written(blobs: BlobStore) -> None:
    """From any place on, with fewer bytes at its end; under a name with parts too."""
    put(blobs, "ab/cd", b"first ", b"second")
    assert blobs.names() == {"ab/cd"}
    assert blobs.size("ab/cd") == 12
    with blobs.reading("ab/cd") as blob:
        assert (blob.size, blob.read(3, 5), blob.read(10, 5), blob.read(12, 5)) == (12, b"st se", b"nd", b"")


def test_a_blob_that_is_not_finished_does_not_exist(blobs: BlobStore) -> None:
    """Not while it is written, and not after an error; the earlier blob of its name is as it was."""
    put(blobs, "other", b"1")
    with blobs.writing("new") as blob:
        blob.write(b"half")
        assert blobs.names() == {"other"}
        with pytest.raises(FileNotFoundError):
            content(blobs, "new")
    with pytest.raises(ZeroDivisionError), blobs.writing("other") as blob:
        blob.write(b"half")
        _ = 1 / 0
    assert content(blobs, "other") == b"1"
    assert blobs.names() == {"new", "other"}


def test_a_blob_can_be_restarted_and_replaced(blobs: BlobStore) -> None:
    put(blobs, "a", b"a long first version")
    with blobs.writing("a") as blob:
        blob.write(b"an even longer second version")
        blob.restart()
        blob.write(b"third")
    assert content(blobs, "a") == b"third"


def test_what_is_not_there(blobs: BlobStore) -> None:
    """Deleting it changes nothing, renewing says so, the rest raises."""
    blobs.delete("a")
    assert blobs.renew("a") is False
    with pytest.raises(FileNotFoundError):
        blobs.size("a")
    with pytest.raises(FileNotFoundError), blobs.reading("a"):
        pass
    assert blobs.names() == set()
    assert blobs.sweep((), 0) == 0


def test_sweep_deletes_what_is_old_and_not_needed(blobs: BlobStore) -> None:
    for name in ("needed", "renewed", "old"):
        put(blobs, name, name.encode())
    assert blobs.sweep({"needed"}, 60) == 0
    time.sleep(0.3)
    assert blobs.renew("renewed")
    assert blobs.sweep({"needed"}, 0.2) == len("old")
    assert blobs.names() == {"needed", "renewed"}
    blobs.delete("renewed")
    assert blobs.names() == {"needed"}


def test_checkpoints_are_kept_in_any_store(blobs: BlobStore, tmp_path: Path) -> None:
    """Written, listed, read, found damaged and removed, without a file of their own in the data folder."""
    files = CheckpointFiles(tmp_path / "data", blobs)
    with files.writing("c1", {"cell": 3}, 100) as writer:
        writer.write(b"an attempt that failed")
        writer.restart()
        writer.write(b"state")
        writer.finish({"lost": []})
    with files.reading(files.path("c1")) as reader:
        assert (reader.header, reader.piece(0), reader.piece(5), reader.footer) == (
            {"cell": 3}, b"state", b"", {"lost": []},
        )  # fmt: skip
    assert files.ids() == {"c1"}
    assert files.size("c1") == len(content(blobs, "c1"))
    assert list((tmp_path / "data" / "checkpoints").iterdir()) == []
    put(blobs, "c2", content(blobs, "c1").replace(b"state", b"STATE"))
    with pytest.raises(CheckpointDamagedError, match="c2"), files.reading(files.path("c2")):
        pass
    files.remove("c1")
    with pytest.raises(CheckpointMissingError), files.reading(files.path("c1")):
        pass
    files.sweep({"c2"})
    assert files.ids() == {"c2"}


def test_large_outputs_are_kept_in_any_store(blobs: BlobStore) -> None:
    payloads = Payloads(blobs)
    result = {"stdout": "é\ud800" * 40_000, "outputs": [{"text": "short"}, {"text": "é\ud800" * 40_000}]}
    kept = payloads.keep(result)
    assert json.loads(kept.text) == {"stdout": None, "outputs": [{"text": "short"}, {"text": None}]}
    assert len(blobs.names()) == 1
    assert payloads.restore(kept.text, [(path, digest) for path, digest, _ in kept.places]) == result
    assert payloads.sweep(()) == 0, "it was written less than a day ago"
