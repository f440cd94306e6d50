"""The fence: what a process writes of a session counts only while no other process has taken the session over.

Each session's row has a number that grows with every new owner. A process that becomes the owner gets a ``Claim`` with
the number, and every write carries it. A process that was frozen, or cut off, for so long that another one went on with
its session has an old number: the store refuses what it writes, in the transaction of the write itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, String, bindparam, cast, literal_column, or_, select
from sqlalchemy.engine import Dialect

from orchestrator.errors import NodeLeaseError, NotOwnerError
from orchestrator.store.databaseclock import now_of
from orchestrator.store.prepared import Prepared
from orchestrator.store.schema import nodes, sessions

_log = logging.getLogger(__name__)


def _statement(dialect: Dialect) -> Select[Any]:
    leased = select(is_leased(dialect)).scalar_subquery()
    locked = select(sessions.c.fence, sessions.c.owner, leased).where(sessions.c.session_id == bindparam("of"))
    return locked.with_for_update(key_share=True)  # in PostgreSQL a new owner waits; SQLite has one writer at a time


def is_leased(dialect: Dialect) -> ColumnElement[bool]:
    """Return the condition that the lease of this process's node has not ended; true outside of a cluster.

    Its parameters are ``Fence.node``.
    """
    mine = (nodes.c.node_id == bindparam("node")) & (nodes.c.epoch == bindparam("epoch"))
    leased = select(nodes.c.node_id).where(mine, nodes.c.lease_until > now_of(dialect)).exists()
    return or_(cast(bindparam("node"), String).is_(None), leased)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a process has of a session that it owns, or was the last to own.

    Attributes:
        fence: the number that the session's row got with this owner; 0: nobody has owned it yet.
    """

    session_id: str
    fence: int


class Fence:
    """Checks claims.

    Attributes:
        node: the name and the epoch of this process's node, as parameters of statements; no name outside of a cluster.
        report: is called with each write that is refused, those that were owed included, in the store's thread.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._read = Prepared(_statement(dialect), dialect)
        self._leased = Prepared(select(literal_column("1")).where(is_leased(dialect)), dialect)
        self.node: dict[str, Any] = {"node": None, "epoch": 0}
        self.report: Callable[[NotOwnerError], object] = _log_refused

    def values(self, claim: Claim) -> dict[str, Any]:
        """Return the parameters of a statement that is fenced."""
        return {**self.node, "of": claim.session_id, "fence": claim.fence}

    def check_lease(self, connection: Connection, what: str) -> None:
        """Check that the lease of this process's node has not ended. No effect outside of a cluster.

        Args:
            what: what is refused, for the message.

        Raises:
            NodeLeaseError: it has ended. The caller's transaction must fail with it.
        """
        if self.node["node"] is not None and self._leased.on(connection, self.node) is None:
            raise lease_is_over(what)

    def check(self, connection: Connection, claim: Claim, what: str) -> bool:
        """Check that a claim is the newest, and keep it so until the transaction ends. Return False if there is no row.

        Args:
            what: what is refused, for the message.

        Raises:
            NotOwnerError: another process has owned the session since. The caller's transaction must fail with it.
            NodeLeaseError: the lease of this process's node has ended. Likewise.
        """
        row = self._read.on(connection, self.values(claim))
        if row is not None and row[0] != claim.fence:
            error = NotOwnerError(
                f"session {claim.session_id} was taken over by another process: {what}.",
                session_id=claim.session_id,
                owner=row[1] or "",
                remedy="Acquire the agent's kernel again: the session goes on where it is now.",
            )
            self.report(error)
            raise error
        if row is not None and not row[2]:
            raise lease_is_over(what)
        return row is not None


def lease_is_over(what: str) -> NodeLeaseError:
    """Return the error for a write of a node whose lease has ended."""
    return NodeLeaseError(
        f"the lease of this node has ended: {what}.",
        remedy="The node goes on when it has renewed its lease, unless another one has its sessions by then.",
    )


def _log_refused(error: NotOwnerError) -> None:
    _log.warning("%s", error)
