"""The numbered steps that bring a database of an older Cellblock to the newest schema.

A released step never changes: add another one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from sqlalchemy import Connection, insert, inspect, select, text

from orchestrator.errors import StoreError
from orchestrator.store.schema import cells, checkpoints, identity, metadata, payloads, schema_version, sessions


def _first(connection: Connection) -> None:
    metadata.create_all(connection, tables=[sessions, cells, payloads, checkpoints])


def _second(connection: Connection) -> None:
    identity.create(connection)
    connection.execute(insert(identity).values(database_id=secrets.token_hex(16)))


STEPS: tuple[Callable[[Connection], None], ...] = (_first, _second)


def migrate(connection: Connection) -> None:
    """Bring the database to the newest schema, in the transaction of ``connection``.

    Raises:
        StoreError: a newer Cellblock has written the database; nothing is changed.
    """
    if connection.dialect.name == "postgresql":  # SQLite's transaction has a lock already
        connection.execute(text("SELECT pg_advisory_xact_lock(727272)"))
    if not inspect(connection).has_table(schema_version.name):
        schema_version.create(connection)
    done = connection.scalar(select(schema_version.c.version).order_by(schema_version.c.version.desc()).limit(1)) or 0
    if done > len(STEPS):
        raise StoreError(
            f"the history was written by a newer Cellblock (schema {done}, this one knows {len(STEPS)}).",
            remedy="Upgrade Cellblock, or set CELLBLOCK_STORE_URL or CELLBLOCK_DATA_DIR to another place.",
        )
    for number, step in enumerate(STEPS[done:], start=done + 1):
        step(connection)
        connection.execute(insert(schema_version).values(version=number))
