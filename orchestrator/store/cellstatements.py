"""What a cell writes, when it begins and when it ends: fenced, and within the agent's quota.

SQLite gets one statement after another, which costs microseconds. PostgreSQL may be a network away: it gets one
statement for each of the two, which is its own transaction and one round trip.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Dialect

from orchestrator.errors import StoreError
from orchestrator.store.agentusage import AgentUsage
from orchestrator.store.fence import Claim, Fence
from orchestrator.store.prepared import Prepared
from orchestrator.store.schema import cells, payloads, sessions

NOT_RUN = "the cell has not run"
NOT_KEPT = "the cell's result is not kept, and its cell counts as interrupted there"
Place = tuple[str, str, int]  # of a large output: its path in the result as JSON, its digest and its size in bytes
_RUNNING = {"outcome": "running", "result": '{"status": "running"}'}
_BEGUN = ("session_id", "number", "kernel_id", "code", "started_at", "bytes")


class CellStatements(Protocol):
    """The writes of one kind of database."""

    def begin(self, connection: Connection, claim: Claim, begun: Mapping[str, Any]) -> None:
        """Add a cell that runs. A row of this number that runs already is replaced: that cell was never begun.

        Args:
            begun: the columns of ``_BEGUN``.

        Raises:
            NotOwnerError, QuotaExceededError: nothing is written.
            Exception: the driver's own error, for instance because a cell of this number has ended.
        """

    def end(self, connection: Connection, claim: Claim, ended: Mapping[str, Any], places: Sequence[Place]) -> bool:
        """Write the result of a cell that runs. Return False if there is none: it has a result, or was deleted.

        Args:
            ended: "cell" (its number), "how", "what", "at", and the size of the result without its large outputs
                ("more").

        Raises:
            NotOwnerError: nothing is written.
        """


def statements_of(dialect: Dialect, fence: Fence, usage: AgentUsage) -> CellStatements:
    """Return the writes of a kind of database."""
    kind = _Postgres if dialect.name == "postgresql" else _Sqlite
    return kind(dialect, fence, usage)


_NEW = sqlite.insert(cells).values({name: bindparam(name) for name in _BEGUN} | _RUNNING)
_BEGIN = _NEW.on_conflict_do_update(
    index_elements=["session_id", "number"],
    set_={name: _NEW.excluded[name] for name in ("kernel_id", "code", "started_at", "bytes")},
    where=cells.c.outcome == "running",
).returning(cells.c.cell_id)
_USE_SESSION = (
    update(sessions)
    .where(sessions.c.session_id == bindparam("of"))
    .values(last_used_at=bindparam("now"), cells=bindparam("cell"))
)
_END = (
    update(cells)
    .where(
        cells.c.session_id == bindparam("of"),
        cells.c.number == bindparam("cell"),
        cells.c.outcome == bindparam("before"),
    )
    .values(
        outcome=bindparam("how"),
        result=bindparam("what"),
        ended_at=bindparam("at"),
        bytes=cells.c.bytes + bindparam("more"),
    )
    .returning(cells.c.cell_id, cells.c.bytes)
)
_GROW = (
    update(sessions).where(sessions.c.session_id == bindparam("of")).values(bytes=sessions.c.bytes + bindparam("more"))
)


class _Sqlite:
    def __init__(self, dialect: Dialect, fence: Fence, usage: AgentUsage) -> None:
        self._fence = fence
        self._usage = usage
        self._begin = Prepared(_BEGIN, dialect)
        self._use_session = Prepared(_USE_SESSION, dialect)
        self._end = Prepared(_END, dialect)
        self._grow = Prepared(_GROW, dialect)

    def begin(self, connection: Connection, claim: Claim, begun: Mapping[str, Any]) -> None:
        self._fence.check(connection, claim, NOT_RUN)
        self._usage.check(connection, claim.session_id, NOT_RUN, begun["bytes"])
        if self._begin.on(connection, begun) is None:
            raise _is_there(begun["number"])
        used = {"of": claim.session_id, "now": begun["started_at"], "cell": begun["number"]}
        self._use_session.on(connection, used)

    def end(self, connection: Connection, claim: Claim, ended: Mapping[str, Any], places: Sequence[Place]) -> bool:
        self._fence.check(connection, claim, NOT_KEPT)
        sizes = {digest: size for _, digest, size in places}
        closed = self._end.on(
            connection,
            {**ended, "of": claim.session_id, "before": "running", "more": ended["more"] + sum(sizes.values())},
        )
        if closed is None:
            return False
        cell_id, size = closed
        more = size - sum(sizes[digest] for digest in _kept_before(connection, claim.session_id, sizes))
        self._grow.on(connection, {"of": claim.session_id, "more": more})
        self._usage.add(connection, claim.session_id, more)
        if places:
            rows = [
                {"cell_id": cell_id, "path": path, "digest": digest, "bytes": size} for path, digest, size in places
            ]
            connection.execute(insert(payloads), rows)
        return True


def _kept_before(connection: Connection, session_id: str, sizes: Collection[str]) -> list[str]:
    """Return those of the digests that an earlier cell of the session has."""
    if not sizes:
        return []
    query = select(payloads.c.digest).join_from(payloads, cells).distinct()
    mine = query.where(cells.c.session_id == session_id, payloads.c.digest.in_(sizes))
    return list(connection.scalars(mine))


# The lease of this process's node, as in ``fence.is_leased``.
_LEASED = """(
        %(node)s::text IS NULL OR EXISTS (
            SELECT FROM nodes WHERE node_id = %(node)s AND epoch = %(epoch)s
                AND lease_until > extract(epoch FROM clock_timestamp())
        )
    )"""
_BEGIN_AT_ONCE = """
WITH owned AS (
    UPDATE sessions SET last_used_at = %(started_at)s, cells = %(number)s
    WHERE session_id = %(session_id)s AND fence = %(fence)s AND LEASED AND NOT EXISTS (
        SELECT FROM agent_usage AS used
        WHERE used.home = sessions.home AND used.agent_id = sessions.agent_id
            AND used.bytes + %(bytes)s > %(quota)s::bigint
    )
    RETURNING session_id
)
INSERT INTO cells (session_id, number, kernel_id, code, started_at, bytes, outcome, result)
SELECT session_id, %(number)s, %(kernel_id)s, %(code)s, %(started_at)s, %(bytes)s, 'running', '{"status": "running"}'
FROM owned
ON CONFLICT (session_id, number) DO UPDATE SET
    kernel_id = excluded.kernel_id, code = excluded.code, started_at = excluded.started_at, bytes = excluded.bytes
    WHERE cells.outcome = 'running'
RETURNING cell_id
"""

# The first part locks the session's row, so that a new owner waits. An output that the session has twice counts once.
_END_AT_ONCE = """
WITH owned AS (
    SELECT session_id FROM sessions WHERE session_id = %(of)s AND fence = %(fence)s AND LEASED
    FOR NO KEY UPDATE
), places AS (
    SELECT * FROM json_to_recordset(%(places)s::json) AS place (path text, digest text, bytes bigint)
), once AS (
    SELECT DISTINCT digest, bytes FROM places
), repeated AS (
    SELECT coalesce(sum(once.bytes), 0) AS bytes FROM once WHERE EXISTS (
        SELECT FROM payloads JOIN cells USING (cell_id)
        WHERE cells.session_id = %(of)s AND payloads.digest = once.digest
    )
), closed AS (
    UPDATE cells SET outcome = %(how)s, result = %(what)s, ended_at = %(at)s,
        bytes = cells.bytes + %(more)s + (SELECT coalesce(sum(bytes), 0) FROM once)
    FROM owned
    WHERE cells.session_id = owned.session_id AND number = %(cell)s AND outcome = 'running'
    RETURNING cells.cell_id, cells.bytes
), grown AS (
    UPDATE sessions SET bytes = sessions.bytes + closed.bytes - repeated.bytes
    FROM closed, repeated WHERE session_id = %(of)s
    RETURNING home, agent_id, closed.bytes - repeated.bytes AS more
), of_agent AS (
    INSERT INTO agent_usage AS used (home, agent_id, bytes) SELECT home, agent_id, more FROM grown
    ON CONFLICT (home, agent_id) DO UPDATE SET bytes = used.bytes + excluded.bytes
), of_home AS (
    INSERT INTO home_usage AS used (home, shard, bytes) SELECT home, %(shard)s, more FROM grown
    ON CONFLICT (home, shard) DO UPDATE SET bytes = used.bytes + excluded.bytes
), kept AS (
    INSERT INTO payloads (cell_id, path, digest, bytes)
    SELECT closed.cell_id, places.path, places.digest, places.bytes FROM closed, places
)
SELECT cell_id FROM closed
"""


class _Postgres:
    def __init__(self, _dialect: Dialect, fence: Fence, usage: AgentUsage) -> None:
        self._fence = fence
        self._usage = usage
        self._begin = Prepared.of_text(_BEGIN_AT_ONCE.replace("LEASED", _LEASED))
        self._end = Prepared.of_text(_END_AT_ONCE.replace("LEASED", _LEASED))

    def begin(self, connection: Connection, claim: Claim, begun: Mapping[str, Any]) -> None:
        values = {**begun, **self._fence.values(claim), "quota": self._usage.quota}
        if self._begin.on(connection, values) is None:
            self._fence.check(connection, claim, NOT_RUN)
            self._usage.check(connection, claim.session_id, NOT_RUN, begun["bytes"])
            raise _is_there(begun["number"])

    def end(self, connection: Connection, claim: Claim, ended: Mapping[str, Any], places: Sequence[Place]) -> bool:
        found = [{"path": path, "digest": digest, "bytes": size} for path, digest, size in places]
        values = {**ended, **self._fence.values(claim), "places": json.dumps(found), "shard": self._usage.shard}
        if self._end.on(connection, values) is None:
            self._fence.check(connection, claim, NOT_KEPT)
            return False
        return True


def _is_there(number: int) -> StoreError:
    """Return the error for a cell whose number has a row that has ended."""
    return StoreError(f"the history has a cell {number} of this session already.", remedy="Acquire the kernel again.")
