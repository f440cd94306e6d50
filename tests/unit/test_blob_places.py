"""Where blobs are kept, which database a shared store belongs to, and which key signs what is in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from obstore.store import MemoryStore
from sqlalchemy import create_engine, text

from orchestrator import Settings
from orchestrator.errors import CheckpointDamagedError, SettingsError, StoreError
from orchestrator.store.blobs import FolderBlobs
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import History
from orchestrator.store.objectclient import ObjectClient
from orchestrator.store.payloads import Payloads
from orchestrator.store.postgresblobs import PostgresBlobs
from tests.conftest import REPOSITORY

Opener = Callable[..., History]


@pytest.fixture
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Opener:
    """Open the history of a host with these settings; each name of a host has a data folder of its own."""

    def opened(host: str = "one", **settings: object) -> History:
        chosen = Settings(data_dir=str(tmp_path / host)).model_copy(update=settings)
        history = History.of(chosen)
        request.addfinalizer(history.close)
        return history

    return opened


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return path


def test_without_the_setting_all_is_in_the_data_folder(opened: Opener, tmp_path: Path) -> None:
    """With a key of its own, and without one in the database."""
    place = opened().place
    assert isinstance(place.outputs, FolderBlobs)
    assert isinstance(place.checkpoints, FolderBlobs)
    assert {place.outputs.folder, place.checkpoints.folder} == {tmp_path / "one/payloads", tmp_path / "one/checkpoints"}
    place.checkpoint_files()
    assert place.key is None
    assert (tmp_path / "one" / "key").is_file()


def test_hosts_of_a_folder_read_what_the_others_write(opened: Opener, url: str, tmp_path: Path) -> None:
    """Checkpoints with one key, and outputs."""
    one, two = (opened(host, store_url=url, blobs=f"file://{tmp_path}/shared%20folder") for host in ("one", "two"))
    files, theirs = one.place.checkpoint_files(), two.place.checkpoint_files()
    with files.writing("c1", {}, 100) as writer:
        writer.write(b"state")
        writer.finish({})
    with theirs.reading(theirs.path("c1")) as reader:
        assert reader.piece(0) == b"state"
    kept = Payloads(one.place.outputs).keep({"stdout": "x" * 40_000}, "s1")
    places = [(path, digest) for path, digest, _ in kept.places]
    assert Payloads(two.place.outputs).restore(kept.text, places, "s1") == {"stdout": "x" * 40_000}
    assert {path.name for path in (tmp_path / "shared folder").iterdir()} == {"database", "checkpoints", "outputs"}


def test_a_store_in_the_database_needs_postgresql(opened: Opener, url: str) -> None:
    if url.startswith("sqlite"):
        with pytest.raises(SettingsError, match="not in PostgreSQL"):
            opened(store_url=url, blobs="database")
    else:
        assert isinstance(opened(store_url=url, blobs="database").place.outputs, PostgresBlobs)


@pytest.mark.parametrize(
    "blobs",
    ["Database", "s3://", "s3://user:hunter2@bucket/x", "s3://bucket/x?key=hunter2", "s3://bucket/a b", "ftp://bucket/x",
     "file://host/folder", "file:folder", "/folder", "s3://bucket//x", "s3://bucket/../x", "s3://bucket/x#hunter2"],
)  # fmt: skip
def test_an_unusable_place_is_refused_without_its_secrets(opened: Opener, blobs: str) -> None:
    with pytest.raises(SettingsError, match="CELLBLOCK_BLOBS cannot be used") as caught:
        opened(blobs=blobs)
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(Settings(blobs=blobs))


def test_a_store_of_another_database_is_refused(opened: Opener, tmp_path: Path) -> None:
    """Else each of the two would delete the other's blobs as unknown."""
    opened("one", blobs=f"file://{tmp_path}/shared")
    with pytest.raises(StoreError, match="of another database"):
        opened("two", blobs=f"file://{tmp_path}/shared")
    client = ObjectClient(MemoryStore(), "memory")
    assert [client.put_if_absent("database", name) for name in (b"one", b"two")] == [b"one", b"one"]


def test_a_shared_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(SettingsError, match=r"writable for other users.*CELLBLOCK_BLOBS"):
        Settings(blobs=f"file://{tmp_path}/shared").refuse_foreign_folders()


def test_hosts_that_start_at_once_get_one_key(opened: Opener, url: str, tmp_path: Path) -> None:
    """It is in the database, and a later start gets it too."""

    def start(number: int) -> bytes | None:
        return opened(f"host{number}", store_url=url, blobs=f"file://{tmp_path}/shared").place.key

    with ThreadPoolExecutor(4) as threads:
        keys = set(threads.map(start, range(4)))
    assert keys == {start(5)}
    assert [len(key or b"") for key in keys] == [32]


def test_a_key_file_keeps_the_key_out_of_the_database(opened: Opener, url: str, tmp_path: Path, key_file: Path) -> None:
    """Which has its fingerprint, so that a host without the file, or with another one, is refused."""
    shared = {"store_url": url, "blobs": f"file://{tmp_path}/shared"}
    assert opened("one", **shared, cluster_key_file=str(key_file)).place.key == key_file.read_bytes()
    engine = create_engine(url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT key FROM cluster_key")).all() == [(None,)]
    engine.dispose()
    with pytest.raises(StoreError, match="in a file, and this host has none"):
        opened("two", **shared)
    key_file.write_bytes(os.urandom(32))
    with pytest.raises(StoreError, match="another key than this host"):
        opened("two", **shared, cluster_key_file=str(key_file))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda file: file.chmod(0o640), "mode 0640, so that others can read it"),
        (lambda file: os.chown(file, 12345, 0), "belongs to uid 12345"),
        (lambda file: file.write_bytes(b"short"), "must have 32 bytes"),
        (lambda file: file.write_bytes(bytes(33)), "must have 32 bytes"),
        (lambda file: file.unlink(), "cannot be read"),
    ],
)
def test_an_unusable_key_file_is_refused(
    opened: Opener, tmp_path: Path, key_file: Path, spoil: Callable[[Path], object], match: str
) -> None:
    spoil(key_file)
    with pytest.raises(SettingsError, match=match):
        opened(blobs=f"file://{tmp_path}/shared", cluster_key_file=str(key_file))


def test_who_writes_the_store_without_the_key_forges_no_checkpoint(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "shared")
    forged = CheckpointFiles(tmp_path / "attacker", blobs, b"\1" * 32)
    with forged.writing("c1", {}, 100) as writer:
        writer.finish({})
    files = CheckpointFiles(tmp_path / "host", blobs, b"\2" * 32)
    with pytest.raises(CheckpointDamagedError), files.reading(files.path("c1")):
        pass


def test_a_missing_client_is_named_with_its_remedy() -> None:
    """The package that object stores need is an extra; all else works without it."""
    program = (
        "import sys; sys.modules['obstore'] = None\n"
        "from orchestrator import Settings\nfrom orchestrator.errors import StoreError\n"
        "from orchestrator.store.history import History\n"
        "History.of(Settings()).close()\n"
        "try: History.of(Settings(blobs='s3://bucket/x'))\n"
        "except StoreError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("Run `pip install cellblock[objects]`.\n")
