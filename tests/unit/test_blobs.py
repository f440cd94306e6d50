"""Every blob store keeps the same promises: in a folder, a database, an object store or memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from orchestrator.errors import CheckpointDamagedError, CheckpointMissingError
from orchestrator.limits import MIB
from orchestrator.store.blobs import BlobStore
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.payloads import Payloads
from tests.blobstores import KINDS, Place, content, new_store, put
from tests.objectserver import ObjectServer, object_server

T = TypeVar("T")
HOSTILE = ("", ".", "..", "../outside", "/outside", "a/../../outside", "a//b", "a/", ".hidden", "a/.b", "a b", "a\0b",
           "ä", "a\n", "%2e%2e/a", "a\\b", "a'; DROP TABLE blobs; --", "a" * 501)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    """The S3 server, whose variables this module's environment has."""
    with object_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    kind = request.param
    url = request.getfixturevalue("postgres_url") if kind == "database" else ""
    with new_store(kind, tmp_path, url, request.getfixturevalue("server") if kind == "s3" else None) as place:
        yield place


@pytest.fixture
def blobs(place: Place) -> BlobStore:
    return place.blobs


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


# Over a folder, obstore copies by a hard link, whose time stays: nothing can be renewed there.
@pytest.mark.parametrize("place", [kind for kind in KINDS if kind != "objects"], indirect=True)
def test_sweep_deletes_what_is_old_and_not_needed(place: Place) -> None:
    """By the clock of the store; what was renewed is young again, and can be read still."""
    blobs, moment = place.blobs, 0.2 + 2 * place.grain
    for name in ("needed", "renewed", "old"):
        put(blobs, name, name.encode())
    assert blobs.sweep({"needed"}, 60) == 0
    time.sleep(1.5 * moment)
    assert blobs.renew("renewed")
    assert blobs.sweep({"needed"}, moment) == len("old")
    assert blobs.names() == {"needed", "renewed"}
    assert content(blobs, "renewed") == b"renewed"
    blobs.delete("renewed")
    assert blobs.names() == {"needed"}


class RenewedMeanwhile(set[str]):
    """What a host needs that looks at it, while another one renews a blob."""

    def __init__(self, blobs: BlobStore, name: str) -> None:
        self._blobs, self._name = blobs, name

    def __contains__(self, name: object) -> bool:
        if name == self._name:
            assert self._blobs.renew(self._name)
        return False


@pytest.mark.parametrize("place", [kind for kind in KINDS if kind != "objects"], indirect=True)
def test_sweep_spares_what_another_host_renews_meanwhile(place: Place) -> None:
    """Its row is about to be written: the sweep has listed the blob as old, and must not delete it now."""
    put(place.blobs, "one", b"1")
    time.sleep(1.1 + place.grain)
    place.blobs.sweep(RenewedMeanwhile(place.blobs, "one"), 1.0)
    assert content(place.blobs, "one") == b"1"


def test_two_hosts_sweep_at_once(blobs: BlobStore) -> None:
    """Each blob is deleted by one of them, and neither fails."""
    for number in range(20):
        put(blobs, f"old{number}", b"1")
    put(blobs, "needed", b"1")
    time.sleep(1.1)
    assert sum(_at_once(4, lambda _: blobs.sweep({"needed"}, 0.0))) >= 20
    assert blobs.names() == {"needed"}


def test_writers_of_one_name_do_not_mix(blobs: BlobStore) -> None:
    """Whoever reads meanwhile or afterwards gets one of the blobs, whole."""
    size = 2 * MIB + 5
    put(blobs, "s/one", b"0" * size)

    def write(number: int) -> None:
        for _ in range(3):
            put(blobs, "s/one", *(str(number).encode() * MIB for _ in range(2)), str(number).encode() * 5)

    def read(_number: int) -> None:
        for _ in range(10):
            try:
                found = content(blobs, "s/one")
            except OSError:  # the blob that it had opened was replaced
                continue
            assert (len(found), len(set(found))) == (size, 1)

    _at_once(6, lambda number: (write if number < 4 else read)(number))
    assert blobs.size("s/one") == size
    assert len(set(content(blobs, "s/one"))) == 1
    assert blobs.names() == {"s/one"}
    blobs.delete("s/one")
    assert blobs.names() == set()


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_a_blob_has_any_size(blobs: BlobStore, size: int) -> None:
    """Written in uneven pieces and read over the borders of the store's own."""
    whole = bytes(range(256)) * (size // 256 + 1)
    put(blobs, "s/one", *(whole[start : min(start + 70_001, size)] for start in range(0, size, 70_001)))
    with blobs.reading("s/one") as blob:
        assert blob.size == size
        assert blob.read(0, size + 10) == whole[:size]
        assert blob.read(size // 2, MIB) == whole[size // 2 : size][:MIB]
        assert blob.read(size, 10) == b""


def test_several_blobs_are_written_together(blobs: BlobStore) -> None:
    """None of them before the end."""
    with blobs.writing_together() as writing:
        for name in ("b", "a", "c"):
            with writing(name) as blob:
                blob.write(name.encode())
        assert blobs.names() == set()
    assert {name: content(blobs, name) for name in blobs.names()} == {"a": b"a", "b": b"b", "c": b"c"}
    with pytest.raises(ZeroDivisionError), blobs.writing_together() as writing:
        with writing("d") as blob:
            blob.write(b"d")
        _ = 1 / 0
    assert "d" not in blobs.names()


def test_a_folder_is_deleted_and_no_other(blobs: BlobStore) -> None:
    for name in ("s/a/1", "s/a/b/2", "s/ab/3", "s/a-/4", "s/a0"):
        put(blobs, name, b"1")
    blobs.delete_under("s/a")
    blobs.delete_under("s/nothing")
    assert blobs.names() == {"s/ab/3", "s/a-/4", "s/a0"}
    blobs.delete_under("s")
    assert blobs.names() == set()


def test_a_hostile_name_reaches_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    """Each method refuses it, and nothing is written or deleted."""
    (tmp_path / "outside").write_text("mine")
    put(blobs, "mine", b"1")

    def write(name: str) -> None:
        put(blobs, name, b"1")

    def read(name: str) -> None:
        content(blobs, name)

    calls = (write, read, blobs.size, blobs.renew, blobs.delete, blobs.delete_under)
    for name in HOSTILE:
        for call in calls:
            with pytest.raises(ValueError, match="name of a blob"):
                call(name)
    assert blobs.names() == {"mine"}
    assert (tmp_path / "outside").read_text() == "mine"


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
    [(path, digest, size)] = kept.places[:1]
    put(blobs, f"{digest[:2]}/{digest}", b"x" * size)
    altered = payloads.restore('{"stdout": null}', [(path, digest)])
    assert altered == {"stdout": f"[payload {digest} was altered]"}


def _at_once(number: int, work: Callable[[int], T]) -> list[T]:
    """Do work in several threads that begin together. Returns what they returned."""
    begin = threading.Barrier(number)

    def begun(which: int) -> T:
        begin.wait(10)
        return work(which)

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(begun, range(number)))
