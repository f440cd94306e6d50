"""Places: how many kernels of a quota the nodes of a cluster have together. Only the tables of sessions use it.

A session takes a place when a node begins it or wakes it, in the transaction that makes the node its owner. It keeps
the place while a node owns it. What a node owned comes free when the node is fenced, which ends its kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, String, bindparam, func, literal, select
from sqlalchemy.engine import Dialect

from orchestrator.errors import KernelPoolExhaustedError
from orchestrator.store.prepared import Prepared
from orchestrator.store.schema import nodes, sessions

_LOCKS = 7271  # the first number of the locks of quotas, so that they differ from those of agents
_CHARGE = bindparam("charge", type_=String())
QUOTA_LOCK = select(func.pg_advisory_xact_lock(_LOCKS, func.hashtext(_CHARGE)))
_OF_NODE = sessions.c.owner.like(literal("node:") + nodes.c.node_id + literal("/%"))
HELD = select(func.count()).where(
    sessions.c.charged == _CHARGE,
    sessions.c.owner.is_not(None),
    sessions.c.session_id != bindparam("of"),
    select(nodes.c.node_id).where(nodes.c.state != "down", _OF_NODE).exists(),
)


@dataclass(frozen=True, slots=True)
class Place:
    """A place that a session takes.

    Attributes:
        charge: the group and the policy whose quota it is.
        quota: how many places there are.
    """

    charge: str
    quota: int

    def refuse_if_full(self, held: int) -> None:
        """Check that a place is free when so many are taken.

        Raises:
            KernelPoolExhaustedError: all are taken.
        """
        if held >= self.quota:
            raise KernelPoolExhaustedError(
                f"group {self.charge.partition(':')[0]!r} has {held} kernels on the nodes of the cluster, its quota.",
                max_kernels=self.quota,
                waited=0.0,
                reason="quota",
                remedy="End a session of the group, wait longer, or raise its quota in the policy.",
            )


class Places:
    """The places of one database."""

    def __init__(self, dialect: Dialect) -> None:
        self._lock = Prepared(QUOTA_LOCK, dialect) if dialect.name == "postgresql" else None  # SQLite has one writer
        self._held = Prepared(HELD, dialect)

    def take(self, connection: Connection, place: Place, session_id: str) -> None:
        """Check that a place is free, and keep it so until the transaction ends.

        Raises:
            KernelPoolExhaustedError: all are taken. The caller's transaction must fail with it.
        """
        if self._lock is not None:
            self._lock.on(connection, {"charge": place.charge})
        place.refuse_if_full(self.held(connection, place.charge, session_id))

    def held(self, connection: Connection, charge: str, session_id: str = "") -> int:
        """Return how many places are taken by other sessions than this one."""
        row = self._held.on(connection, {"charge": charge, "of": session_id})
        return 0 if row is None else int(row[0])
