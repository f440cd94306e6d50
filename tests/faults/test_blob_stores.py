"""Blob stores of several hosts: writers that are killed, blobs that are larger than memory, stores that are away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text

from orchestrator.errors import StoreError
from orchestrator.limits import MIB
from orchestrator.store.blobs import BlobStore
from tests.blobstores import PROCESSES, Place, content, new_store, opened, put
from tests.conftest import REPOSITORY
from tests.objectserver import SECRET, ObjectServer, object_server
from tests.postgres import postgres_server

LARGE = int(os.environ.get("CELLBLOCK_TEST_BLOB_MB", "100"))
MOST = 64  # MiB by which a process grows that writes and reads it
LONGEST = 120.0  # seconds until a store that does not answer is an error


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    """The S3 server, whose variables this module's environment has."""
    with object_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.variables.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(params=PROCESSES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    kind = request.param
    url = request.getfixturevalue("postgres_url") if kind == "database" else ""
    with new_store(kind, tmp_path, url, request.getfixturevalue("server") if kind == "s3" else None) as place:
        yield place


def program(what: str, place: Place, megabytes: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.blobstores", what, place.text, str(megabytes)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_nothing_is_seen_of_a_killed_writer(place: Place, request: pytest.FixtureRequest) -> None:
    """It dies in the midst of 50 MB: the earlier blob stays, and ``sweep`` frees what was written."""
    put(place.blobs, "s/killed", b"earlier")
    with program("half", place, 50) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        assert place.blobs.names() == {"s/killed"}
        writer.send_signal(signal.SIGKILL)
    assert place.blobs.names() == {"s/killed"}
    assert content(place.blobs, "s/killed") == b"earlier"
    assert place.blobs.sweep({"s/killed"}, 60) == 0, "it may be written still"
    time.sleep(0.1)
    freed = place.blobs.sweep({"s/killed"}, 0.05)
    if place.text.startswith(("folder", "database")):  # an object store frees unfinished uploads by a rule of its own
        assert freed >= 24 * MIB
    if place.text.startswith("database"):
        engine = create_engine(request.getfixturevalue("postgres_url"))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM blob_pieces")).scalar_one() == 1
        engine.dispose()
    assert content(place.blobs, "s/killed") == b"earlier"


def test_a_large_blob_takes_little_memory(place: Place) -> None:
    """Writing 100 MB, and reading them again, piece by piece. `make blob-stores` does so with 300 MB."""
    with program("measure", place, LARGE) as writer:
        grown, _ = writer.communicate(timeout=300)
    assert writer.returncode == 0
    print(f"{place.text.partition(':')[0]}: {LARGE} MiB with {grown.strip()} MiB of memory")
    assert int(grown) < MOST


def test_a_store_that_has_stopped_is_an_error_and_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes are stopped, as those of a host that hangs; it goes on, and everything is as it was."""
    with postgres_server() as url, object_server() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        with new_store("database", tmp_path, url) as database, new_store("s3", tmp_path, "", server) as objects:
            stores = [database.blobs, objects.blobs]
            for blobs in stores:
                put(blobs, "s/one", b"1")
            processes = [*_processes_of(url), psutil.Process(server.process.pid)]
            for process in processes:
                process.suspend()
            try:
                with ThreadPoolExecutor(len(stores)) as threads:
                    errors = list(threads.map(_failed, stores))
            finally:
                for process in processes:
                    process.resume()
            assert not any(SECRET in error or "tests@" in error for error in errors)
            end = time.monotonic() + LONGEST
            for blobs in stores:
                while not _answers(blobs):
                    assert time.monotonic() < end
                    time.sleep(0.5)


def test_a_store_that_is_not_there_is_an_error(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address refuses connections; the message names the store and no secret."""
    with new_store("s3", Path(), "", server) as place:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with opened(place.text) as away:
            for call in (lambda: content(away, "s/one"), lambda: put(away, "s/one", b"1"), away.names):
                with pytest.raises(StoreError, match="object store s3://tests-") as caught:
                    call()
                assert SECRET not in str(caught.value)


def _failed(blobs: BlobStore) -> str:
    began = time.monotonic()
    with pytest.raises(OSError) as caught:
        put(blobs, "s/two", b"2")
    assert time.monotonic() - began < LONGEST
    assert isinstance(caught.value, StoreError)
    return str(caught.value)


def _answers(blobs: BlobStore) -> bool:
    try:
        return content(blobs, "s/one") == b"1" and blobs.names() == {"s/one"}
    except StoreError:
        return False


def _processes_of(url: str) -> list[psutil.Process]:
    """Return the processes of the server whose sockets are in the folder of this URL."""
    folder = url.partition("host=")[2]
    first = int(Path(folder, "data", "postmaster.pid").read_text().splitlines()[0])
    assert first != os.getpid()
    process = psutil.Process(first)
    return [process, *process.children(recursive=True)]
