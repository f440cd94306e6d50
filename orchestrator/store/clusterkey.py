"""The key that signs the checkpoints of all hosts that share a blob store.

It is in a file of each host, or else in the database. The database has its fingerprint in any case, so that a host with
another key is refused at its start.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

from sqlalchemy import select, text

from orchestrator.errors import SettingsError, StoreError
from orchestrator.store.database import Database
from orchestrator.store.schema import cluster_key

_SIZE = 32  # bytes
_KEEP = text("INSERT INTO cluster_key (key_id, key, fingerprint) VALUES (1, :key, :fingerprint) ON CONFLICT DO NOTHING")


def shared_key(database: Database, file: str) -> bytes:
    """Return the key of a database's hosts, after making it if there is none yet.

    Args:
        file: the path of the key; "": it is in the database.

    Raises:
        SettingsError: the file cannot be read, can be read by others, or is no key.
        StoreError: the other hosts of the database have another key; or the database fails.
    """
    mine = _of_file(Path(file)) if file else None
    made = mine or secrets.token_bytes(_SIZE)
    with database.writing(durable=True) as connection:
        kept = {"key": None if mine else made, "fingerprint": _fingerprint(made)}
        connection.execute(_KEEP, kept)
        row = connection.execute(select(cluster_key)).one()
    key = mine or row.key
    if key is None:
        raise StoreError(
            "the hosts of this database have the key that signs checkpoints in a file, and this host has none.",
            remedy="Copy the file to this host, and set CELLBLOCK_CLUSTER_KEY_FILE to its path.",
        )
    if row.fingerprint != _fingerprint(key):
        raise StoreError(
            "the other hosts of this database sign checkpoints with another key than this host.",
            remedy="Set CELLBLOCK_CLUSTER_KEY_FILE to a copy of their file; or unset it, if they have none.",
        )
    return bytes(key)


def _of_file(path: Path) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            info = os.fstat(file.fileno())
            key = file.read(_SIZE + 1)
    except OSError as error:
        raise SettingsError(
            f"the key file {path} cannot be read: {error.strerror}.",
            remedy="Set CELLBLOCK_CLUSTER_KEY_FILE to a file that this user can read.",
        ) from error
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o077:
        raise SettingsError(
            f"the key file {path} is not used: it belongs to uid {info.st_uid} with mode "
            f"{stat.S_IMODE(info.st_mode):04o}, so that others can read it.",
            remedy=f"Run `chown {os.geteuid()} {path}` and `chmod 600 {path}`.",
        )
    if len(key) != _SIZE:
        raise SettingsError(
            f"the key file {path} is not a key: it must have {_SIZE} bytes.",
            remedy=f"Make one with `(umask 077; head -c {_SIZE} /dev/urandom > {path})`, and copy it to all hosts.",
        )
    return key


def _fingerprint(key: bytes) -> str:
    return hashlib.sha256(b"cellblock cluster key " + key).hexdigest()
