"""Where blobs are kept: in the data folder, or in a store that several hosts share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SettingsError, StoreError
from orchestrator.settings import Settings
from orchestrator.store.blobs import BlobStore, FolderBlobs
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.clusterkey import shared_key
from orchestrator.store.database import Database
from orchestrator.store.objectblobs import ObjectBlobs
from orchestrator.store.postgresblobs import PostgresBlobs
from orchestrator.store.wholefile import write_once

_OUTPUTS, _CHECKPOINTS = "outputs", "checkpoints"
_DATABASE = "database"  # what has the id of the database whose blobs are in the store


@dataclass(frozen=True, slots=True)
class BlobPlace:
    """The stores for large outputs and for checkpoints.

    Attributes:
        folder: this host's data folder.
        key: signs the checkpoints of a shared store; None: the data folder has a key of its own.
    """

    folder: Path
    outputs: BlobStore
    checkpoints: BlobStore
    key: bytes | None = None

    @classmethod
    def local(cls, folder: Path) -> BlobPlace:
        """Return the place in a data folder."""
        return cls(folder, FolderBlobs(folder / "payloads"), FolderBlobs(folder / "checkpoints"))

    @classmethod
    def shared(cls, folder: Path, settings: Settings, database: Database, database_id: str) -> BlobPlace:
        """Return the place that CELLBLOCK_BLOBS names, after a look whether it can be written and read.

        Args:
            database: at the newest schema.

        Raises:
            SettingsError: a setting cannot be used.
            StoreError: the store cannot be reached or written, or needs a package that is not installed, or has the
                blobs of another database. Each of the two would delete the other's as unknown.
        """
        outputs, checkpoints = _stores(settings, database, database_id)
        return cls(folder, outputs, checkpoints, shared_key(database, settings.cluster_key_file))

    def checkpoint_files(self) -> CheckpointFiles:
        """Return the checkpoints of this place.

        Raises:
            StoreError: see ``CheckpointFiles``.
        """
        return CheckpointFiles(self.folder, self.checkpoints, self.key)


def _stores(settings: Settings, database: Database, database_id: str) -> tuple[BlobStore, BlobStore]:
    place = settings.blobs_in
    if place == "database":
        if database.dialect.name != "postgresql":
            raise SettingsError(
                "CELLBLOCK_BLOBS is database, and the history is not in PostgreSQL.",
                remedy="Set CELLBLOCK_STORE_URL to a PostgreSQL database, or CELLBLOCK_BLOBS to another place.",
            )
        return PostgresBlobs(database, _OUTPUTS), PostgresBlobs(database, _CHECKPOINTS)
    if (folder := settings.blobs_folder) is not None:
        return _in_folder(folder, database_id)
    return _in_objects(place, database_id)


def _in_folder(folder: Path, database_id: str) -> tuple[BlobStore, BlobStore]:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = write_once(folder / _DATABASE, database_id.encode())
    except OSError as error:
        raise StoreError(
            f"the shared folder {folder} cannot be used: {error.strerror}.",
            remedy="Set CELLBLOCK_BLOBS to a folder that this user can write to, on every host.",
        ) from error
    _refuse_foreign(found, database_id, f"the folder {folder}")
    return FolderBlobs(folder / _OUTPUTS), FolderBlobs(folder / _CHECKPOINTS)


def _in_objects(url: str, database_id: str) -> tuple[BlobStore, BlobStore]:
    try:
        from orchestrator.store.objectclient import ObjectClient
    except ImportError as error:
        raise StoreError(
            "CELLBLOCK_BLOBS names an object store, and its client is not installed.",
            remedy="Run `pip install cellblock[objects]`.",
        ) from error
    client = ObjectClient.of_url(url)
    _refuse_foreign(client.put_if_absent(_DATABASE, database_id.encode()), database_id, f"the object store {url}")
    return ObjectBlobs(client, _OUTPUTS), ObjectBlobs(client, _CHECKPOINTS)


def _refuse_foreign(found: bytes, database_id: str, place: str) -> None:
    if found != database_id.encode():
        raise StoreError(
            f"{place} has the checkpoints and outputs of another database than CELLBLOCK_STORE_URL names.",
            remedy="Set CELLBLOCK_STORE_URL to that database, or CELLBLOCK_BLOBS to another place.",
        )
