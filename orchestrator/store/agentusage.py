"""How many bytes each agent and all agents keep in one data folder, and the most that one agent may keep.

The totals change in the transaction of the rows that they count: code and results of cells that have ended, large
outputs (one that a session has twice counts once) and checkpoint files. Reading them costs the same however long the
history is.
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import BigInteger, Connection, Insert, bindparam, delete, func, select
from sqlalchemy.engine import Dialect

from orchestrator.errors import QuotaExceededError
from orchestrator.limits import MIB
from orchestrator.store.prepared import Prepared, inserting
from orchestrator.store.schema import agent_usage, home_usage, sessions

_SHARDS = 256  # rows of one data folder's total
_MINE = (agent_usage.c.home == sessions.c.home) & (agent_usage.c.agent_id == sessions.c.agent_id)
_READ = (
    select(agent_usage.c.agent_id, agent_usage.c.bytes)
    .join_from(sessions, agent_usage, _MINE)
    .where(sessions.c.session_id == bindparam("of"))
)


class AgentUsage:
    """The totals of the agents of one data folder.

    Args:
        home: the id of the data folder.
        quota: bytes that one agent may keep; None: any number.

    Attributes:
        shard: the row of the data folder's total to which this process adds.
    """

    def __init__(self, dialect: Dialect, home: str, quota: int | None) -> None:
        self._home = home
        self.quota = quota
        self._read = Prepared(_READ, dialect)
        self._add = Prepared(_adding(dialect), dialect)
        self._add_to_home = Prepared(_adding_to_home(dialect), dialect)
        self.shard = secrets.randbelow(_SHARDS)

    def total(self, connection: Connection) -> int:
        """Return how many bytes all agents of the data folder keep."""
        query = select(func.sum(home_usage.c.bytes)).where(home_usage.c.home == self._home)
        return int(connection.scalar(query) or 0)

    def add(self, connection: Connection, session_id: str, more: int) -> None:
        """Add to the total of a session's agent; less than 0 subtracts. Nothing is refused."""
        self._added(connection, session_id, more)

    def charge(self, connection: Connection, session_id: str, more: int, refused: str) -> None:
        """Do what ``add`` does, within the quota.

        Args:
            refused: what does not happen if the quota is exceeded, for the message.

        Raises:
            QuotaExceededError: the agent would keep more than its quota. The caller's transaction must fail with it.
        """
        row = self._added(connection, session_id, more)
        if row is not None:  # None: the session was deleted
            self._check(str(row[0]), int(row[1]), int(row[1]) - more, refused)

    def check(self, connection: Connection, session_id: str, refused: str, more: int = 1) -> None:
        """Check that the agent of a session may keep ``more`` bytes. Nothing is added.

        Args:
            refused: what does not happen if the quota would be exceeded, for the message.

        Raises:
            QuotaExceededError: the agent would keep more than its quota.
        """
        if self.quota is not None and (row := self._read.on(connection, {"of": session_id})) is not None:
            agent_id, used = row
            self._check(agent_id, used + more, used, refused)

    def forget(self, connection: Connection, agent_id: str) -> None:
        """Delete the total of an agent that has no session left."""
        of_agent = (sessions.c.agent_id == agent_id) & (sessions.c.home == self._home)
        mine = (agent_usage.c.home == self._home) & (agent_usage.c.agent_id == agent_id)
        left = select(sessions.c.session_id).where(of_agent).exists()
        connection.execute(delete(agent_usage).where(mine & ~left))

    def _added(self, connection: Connection, session_id: str, more: int) -> tuple[Any, ...] | None:
        row = self._add.on(connection, {"of": session_id, "more": more})
        if row is not None:
            self._add_to_home.on(connection, {"home": self._home, "shard": self.shard, "bytes": more})
        return row

    def _check(self, agent_id: str, wanted: int, used: int, refused: str) -> None:
        if self.quota is not None and wanted > self.quota:
            raise QuotaExceededError(
                f"agent {agent_id!r} keeps {used / MIB:.1f} MiB of history and checkpoints, and its quota is "
                f"{self.quota / MIB:.1f} MiB: {refused}.",
                agent_id=agent_id,
                used_bytes=used,
                quota_bytes=self.quota,
                remedy=f"Delete sessions of the agent (`cellblock sessions list --agent {agent_id}`, "
                "`cellblock sessions delete ID`), or raise CELLBLOCK_AGENT_QUOTA_MB.",
            )


def _adding(dialect: Dialect) -> Insert:
    """Return the statement that adds ``more`` to the total of the agent of session ``of``, and returns both."""
    more = bindparam("more", type_=BigInteger())
    found = select(sessions.c.home, sessions.c.agent_id, more).where(sessions.c.session_id == bindparam("of"))
    new = inserting(dialect, agent_usage).from_select(["home", "agent_id", "bytes"], found)
    adding: Insert = new.on_conflict_do_update(
        index_elements=["home", "agent_id"], set_={"bytes": agent_usage.c.bytes + new.excluded.bytes}
    ).returning(agent_usage.c.agent_id, agent_usage.c.bytes)
    return adding


def _adding_to_home(dialect: Dialect) -> Insert:
    """Return the statement that adds ``bytes`` to a shard of the data folder's total."""
    new = inserting(dialect, home_usage).values({column.name: bindparam(column.name) for column in home_usage.c})
    more = {"bytes": home_usage.c.bytes + new.excluded.bytes}
    adding: Insert = new.on_conflict_do_update(index_elements=["home", "shard"], set_=more)
    return adding
