"""The numbered steps that bring a database of an older Cellblock to the newest schema.

A released step never changes: add another one.

A step that only adds is one that a process of an older version may go on beside: it reads and writes what it knows. A
step of ``BREAKING`` is refused while nodes of older versions hold a lease.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Column, Connection, func, insert, inspect, literal, select, text, update
from sqlalchemy.schema import CreateColumn

from orchestrator.errors import StoreError
from orchestrator.store.databaseclock import now_of
from orchestrator.store.schema import (
    agent_usage,
    blob_pieces,
    blobs,
    cells,
    checkpoints,
    cluster_key,
    commands,
    handles,
    home_usage,
    identity,
    metadata,
    nodes,
    payloads,
    schema_version,
    sessions,
    tokens,
)

_OUTPUTS_INDEX = "cells_with_outputs"
_CHARGED_INDEX = "sessions_charged"
_KNOWN_OF_NODES = 13  # the schema from which on nodes tell which schema they know


def _first(connection: Connection) -> None:
    metadata.create_all(connection, tables=[sessions, cells, payloads, checkpoints])


def _second(connection: Connection) -> None:
    identity.create(connection)
    connection.execute(insert(identity).values(database_id=secrets.token_hex(16)))


def _third(connection: Connection) -> None:
    """Keep the number of cells and their size on the session's row. A new database has these columns already."""
    _add_columns(connection, sessions.c.cells, sessions.c.bytes)
    for index in (*sessions.indexes, *cells.indexes):
        if index.name not in (_OUTPUTS_INDEX, _CHARGED_INDEX):
            index.create(connection, checkfirst=True)
    mine = cells.c.session_id == sessions.c.session_id
    large = select(payloads.c.digest, payloads.c.bytes).join_from(payloads, cells).where(mine).correlate(sessions)
    once = large.distinct().subquery()
    twice = select(func.sum(payloads.c.bytes)).join_from(payloads, cells).where(mine).correlate(sessions)
    sums = [select(func.sum(cells.c.bytes)).where(mine), twice, select(func.sum(once.c.bytes))]
    total, repeated, single = (func.coalesce(each.scalar_subquery(), 0) for each in sums)
    last = func.coalesce(select(func.max(cells.c.number)).where(mine).scalar_subquery(), 0)
    connection.execute(update(sessions).values(cells=last, bytes=total - repeated + single))


def _fourth(connection: Connection) -> None:
    """Keep how much each agent has."""
    agent_usage.create(connection)
    saved = select(checkpoints.c.session_id, func.sum(checkpoints.c.bytes).label("bytes"))
    of_session = saved.group_by(checkpoints.c.session_id).subquery()
    total = func.sum(sessions.c.bytes + func.coalesce(of_session.c.bytes, 0))
    used = select(sessions.c.home, sessions.c.agent_id, total).group_by(sessions.c.home, sessions.c.agent_id)
    used = used.outerjoin_from(sessions, of_session, of_session.c.session_id == sessions.c.session_id)
    connection.execute(insert(agent_usage).from_select(["home", "agent_id", "bytes"], used))


def _fifth(connection: Connection) -> None:
    """Let retention find and mark the cells whose outputs it deletes."""
    _add_columns(connection, cells.c.swept)
    for index in cells.indexes:
        if index.name == _OUTPUTS_INDEX:
            index.create(connection, checkfirst=True)


def _sixth(connection: Connection) -> None:
    """Keep how much each data folder has."""
    home_usage.create(connection)
    used = select(agent_usage.c.home, literal(0), func.sum(agent_usage.c.bytes)).group_by(agent_usage.c.home)
    connection.execute(insert(home_usage).from_select(["home", "shard", "bytes"], used))


def _seventh(connection: Connection) -> None:
    """Drop an index that nothing reads any more, and that every cell had to change."""
    connection.execute(text("DROP INDEX IF EXISTS sessions_by_size"))


def _eighth(connection: Connection) -> None:
    """Keep commands."""
    commands.create(connection, checkfirst=True)


def _ninth(connection: Connection) -> None:
    """Keep the tokens of a server, and what it knows of its sessions."""
    metadata.create_all(connection, tables=[tokens, handles])


def _tenth(connection: Connection) -> None:
    """Count a session's owners, so that a write of an earlier one can be refused; and keep the nodes of a cluster."""
    _add_columns(connection, sessions.c.fence)
    nodes.create(connection, checkfirst=True)


def _eleventh(connection: Connection) -> None:
    """Keep the key of a shared blob store, and in PostgreSQL blobs too."""
    cluster_key.create(connection, checkfirst=True)
    if connection.dialect.name == "postgresql":
        metadata.create_all(connection, tables=[blobs, blob_pieces])
        # Not compressed: the server would spend time on it with every piece.
        connection.execute(text("ALTER TABLE blob_pieces ALTER COLUMN content SET STORAGE EXTERNAL"))


def _twelfth(connection: Connection) -> None:
    """Find an agent's sessions without reading those of the other agents."""
    connection.execute(text("DROP INDEX IF EXISTS sessions_by_agent"))
    _create(connection, "sessions_of_agent")


def _thirteenth(connection: Connection) -> None:
    """Count places of a cluster's quotas; and know which schemas the nodes know, and which may write."""
    _add_columns(connection, sessions.c.charged, nodes.c.schema_known)
    _create(connection, _CHARGED_INDEX)


def _fourteenth(connection: Connection) -> None:
    """Know since when the database has answered the nodes of a cluster."""
    _add_columns(connection, nodes.c.answering_since)


def _create(connection: Connection, name: str) -> None:
    """Create an index of the sessions. A new database has it already."""
    next(index for index in sessions.indexes if index.name == name).create(connection, checkfirst=True)


def _add_columns(connection: Connection, *columns: Column[Any]) -> None:
    """Add columns to a table that was made without them. A new database has them already."""
    for column in columns:
        if column.name not in {found["name"] for found in inspect(connection).get_columns(column.table.name)}:
            form = CreateColumn(column).compile(dialect=connection.dialect)
            connection.execute(text(f"ALTER TABLE {column.table.name} ADD COLUMN {form}"))


STEPS: tuple[Callable[[Connection], None], ...] = (
    _first,
    _second,
    _third,
    _fourth,
    _fifth,
    _sixth,
    _seventh,
    _eighth,
    _ninth,
    _tenth,
    _eleventh,
    _twelfth,
    _thirteenth,
    _fourteenth,
)


BREAKING: Final = frozenset(range(1, 12))
"""The steps after which a version that does not know them must not write. All but those that only add."""


def migrate(connection: Connection) -> None:
    """Bring the database to the newest schema, in the transaction of ``connection``.

    A newer schema is left as it is, if this version may still write it.

    Raises:
        StoreError: a newer Cellblock has written the database, and this version may not; or nodes of an older version
            hold a lease, and would misread what a step makes. Nothing is changed.
    """
    if connection.dialect.name == "postgresql":  # SQLite's transaction has a lock already
        connection.execute(text("SELECT pg_advisory_xact_lock(727272)"))
    if not inspect(connection).has_table(schema_version.name):
        schema_version.create(connection)
    _add_columns(connection, schema_version.c.oldest_writer)
    done = check_may_write(connection)
    _refuse_older_nodes(connection, done)
    for number, step in enumerate(STEPS[done:], start=done + 1):
        step(connection)
        oldest = max((breaking for breaking in BREAKING if breaking <= number), default=0)
        connection.execute(insert(schema_version).values(version=number, oldest_writer=oldest))


def check_may_write(connection: Connection) -> int:
    """Return the database's schema; 0 if it has none.

    Raises:
        StoreError: a newer Cellblock has written the database, and this version may not.
    """
    newest = select(schema_version.c.version, schema_version.c.oldest_writer).order_by(schema_version.c.version.desc())
    row = connection.execute(newest.limit(1)).first()
    done, oldest = (0, 0) if row is None else (row.version, row.version if row.oldest_writer is None else row[1])
    if done > len(STEPS) and oldest > len(STEPS):
        raise StoreError(
            f"the history was written by a newer Cellblock (schema {done}; this one knows {len(STEPS)}, and the oldest "
            f"that may still write is {oldest}).",
            remedy="Upgrade Cellblock, or set CELLBLOCK_STORE_URL or CELLBLOCK_DATA_DIR to another place.",
        )
    return int(done)


def _refuse_older_nodes(connection: Connection, done: int) -> None:
    """Refuse a breaking step while nodes that do not know it hold a lease.

    Raises:
        StoreError: there are some.
    """
    breaking = max((number for number in BREAKING if number > done), default=0)
    if not breaking or done < _KNOWN_OF_NODES:
        return
    holds = (nodes.c.state != "down") & (nodes.c.lease_until > now_of(connection.dialect))
    older = select(nodes.c.node_id, nodes.c.url, nodes.c.version).where(holds, nodes.c.schema_known < breaking)
    found = connection.execute(older.order_by(nodes.c.node_id)).all()
    if found:
        named = ", ".join(f"{row.node_id} ({row.url}, Cellblock {row.version})" for row in found)
        raise StoreError(
            f"schema {breaking} is not for nodes of an older version, and some hold a lease: {named}. Nothing is "
            "changed.",
            remedy="Run `cellblock cluster drain NODE` for each, `cellblock cluster down` on its host, and start this "
            "node again.",
        )
