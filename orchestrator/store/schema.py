"""The tables of the history, and the numbered steps that bring an older database to them. SQLite and PostgreSQL alike.

A step is never changed once it was released: add another.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    insert,
    inspect,
    select,
    text,
)

from orchestrator.errors import StoreError

metadata = MetaData()

sessions = Table(
    "sessions",
    metadata,
    Column("session_id", String(32), primary_key=True),
    Column("agent_id", String(200), nullable=False),
    Column("parent_id", String(32)),  # the session that it was forked from
    Column("home", String(32), nullable=False),  # whose data folder has its files
    Column("owner", String(200)),  # the process that has it; NULL for nobody
    Column("state", String(16), nullable=False),  # live, asleep, ended
    Column("end_reason", String(32)),
    Column("created_at", Float, nullable=False),
    Column("last_used_at", Float, nullable=False),
    Column("kernel_id", String(32), nullable=False),
    Column("runtime", String(64), nullable=False),
    Index("sessions_by_agent", "agent_id", "state"),
)

cells = Table(
    "cells",
    metadata,
    Column("cell_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("session_id", ForeignKey("sessions.session_id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("kernel_id", String(32), nullable=False),
    Column("code", Text, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("outcome", String(16), nullable=False),  # running until it is known
    Column("result", Text, nullable=False),  # JSON in ASCII; what is in ``payloads`` is null there
    Column("bytes", BigInteger, nullable=False),
    UniqueConstraint("session_id", "number"),
)

payloads = Table(
    "payloads",
    metadata,
    Column("cell_id", ForeignKey("cells.cell_id", ondelete="CASCADE"), primary_key=True),
    Column("path", String(500), primary_key=True),  # JSON: the keys that lead to its place in the result
    Column("digest", String(64), nullable=False, index=True),
    Column("bytes", BigInteger, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("checkpoint_id", String(32), primary_key=True),
    Column("session_id", ForeignKey("sessions.session_id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", Float, nullable=False),
    Column("cell", Integer, nullable=False),  # the last one whose effects it has
    Column("asked_for", Boolean, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("lost", Text, nullable=False),  # JSON
)

identity = Table("identity", metadata, Column("database_id", String(32), primary_key=True))  # one row

_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))


def _first(connection: Connection) -> None:
    metadata.create_all(connection, tables=[sessions, cells, payloads, checkpoints])


def _second(connection: Connection) -> None:
    identity.create(connection)
    connection.execute(insert(identity).values(database_id=secrets.token_hex(16)))


STEPS: tuple[Callable[[Connection], None], ...] = (_first, _second)


def migrate(connection: Connection) -> None:
    """Bring the database to the newest schema, in the transaction that ``connection`` is in.

    Raises:
        StoreError: a newer Cellblock has written it; nothing is changed.
    """
    if connection.dialect.name == "postgresql":  # two processes at once; SQLite's transaction has the lock already
        connection.execute(text("SELECT pg_advisory_xact_lock(727272)"))
    if not inspect(connection).has_table(_version.name):
        _version.create(connection)
    done = connection.scalar(select(_version.c.version).order_by(_version.c.version.desc()).limit(1)) or 0
    if done > len(STEPS):
        raise StoreError(
            f"the history was written by a newer Cellblock (schema {done}, this one knows {len(STEPS)}).",
            remedy="Upgrade Cellblock, or set CELLBLOCK_STORE_URL or CELLBLOCK_DATA_DIR to another place.",
        )
    for number, step in enumerate(STEPS[done:], start=done + 1):
        step(connection)
        connection.execute(insert(_version).values(version=number))
