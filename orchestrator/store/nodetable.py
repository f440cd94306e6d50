"""The nodes of a cluster: who is there, by the database's clock. Only ``History`` uses this class.

A node renews its lease. One whose lease has ended is fenced by whichever node looks next: its epoch grows, and from
then on the store refuses what it writes, and its sessions may be taken over. What a node believes about the time does
not matter.

While the database is away, every lease ends. So after a time without a renewal of any node, no node is fenced for one
lease: each of them can renew first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, func, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.store.database import Database
from orchestrator.store.databaseclock import now_of
from orchestrator.store.migrations import STEPS, check_may_write
from orchestrator.store.noderecord import OUTAGE, Capacity, NodeRecord, NodeState
from orchestrator.store.schema import nodes, sessions

_AT_ONCE = 1000  # sessions that one statement names
CLUSTER = "cluster:"  # begins the home of sessions that all nodes of a database share
_SILENCE = 0.5  # leases without a renewal of any node that are an outage: a node alone renews each third of one
_every = nodes.alias("every")


class NodeTable:
    """The nodes of one database. All methods block, and raise StoreError where the database fails."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._now = now_of(database.dialect)

    def join_cluster(
        self, node_id: str, *, url: str, version: str, protocol: int, lease_s: float, capacity: Capacity
    ) -> int:
        """Add a node, or begin its next epoch: what it was before owns nothing any longer. Returns the epoch.

        Raises:
            StoreError: a newer Cellblock has changed the database since this process opened it, and this version may
                not write it any longer.
        """
        values = {
            "url": url,
            "state": "up",
            "version": version,
            "protocol": protocol,
            "capacity": json.dumps(capacity.as_dict()),
            "lease_until": self._now + lease_s,
            "schema_known": len(STEPS),
            "answering_since": self._answering_since(lease_s),
        }
        insert = postgresql.insert if self._database.dialect.name == "postgresql" else sqlite.insert
        joined = insert(nodes).values(node_id=node_id, epoch=1, **values)
        again = joined.on_conflict_do_update(
            index_elements=["node_id"], set_={**values, "epoch": nodes.c.epoch + 1}
        ).returning(nodes.c.epoch)

        def join(connection: Connection) -> int:
            if connection.dialect.name == "postgresql":  # a migration sees this node, or this node sees the migration
                connection.execute(text("SELECT pg_advisory_xact_lock_shared(727272)"))
            check_may_write(connection)
            return int(connection.execute(again).scalar_one())

        return self._database.write(join)

    def renew_lease(
        self, node_id: str, epoch: int, *, lease_s: float, state: NodeState, capacity: Capacity
    ) -> list[NodeRecord] | None:
        """Renew a node's lease, and fence the nodes whose lease has ended, unless the database was away lately.

        Returns:
            All nodes. None if another node has fenced this one: its epoch is over, for good.
        """
        mine = (nodes.c.node_id == node_id) & (nodes.c.epoch == epoch)
        renewed = (
            update(nodes)
            .where(mine)
            .values(
                lease_until=self._now + lease_s,
                state=state,
                capacity=json.dumps(capacity.as_dict()),
                answering_since=self._answering_since(lease_s),
            )
        )
        late = (nodes.c.state != "down") & (nodes.c.lease_until < self._now)
        could_renew = self._latest(_every.c.answering_since) <= self._now - lease_s
        gave_up = nodes.c.lease_until < self._now - OUTAGE * lease_s
        fenced = update(nodes).where(late, or_(could_renew, gave_up)).values(state="down", epoch=nodes.c.epoch + 1)
        # No transaction: its locks would keep the other nodes from renewing if this node were frozen in the midst.
        with self._database.writing(single=True) as connection:
            if not connection.execute(renewed).rowcount:
                return None
            connection.execute(fenced)
            return [_record(row) for row in connection.execute(self._nodes())]

    def leave_cluster(self, node_id: str, epoch: int) -> None:
        """End a node's epoch. No effect if it is over."""
        mine = (nodes.c.node_id == node_id) & (nodes.c.epoch == epoch)
        left = update(nodes).where(mine).values(state="down", epoch=epoch + 1, lease_until=self._now)
        self._database.write(lambda connection: connection.execute(left))

    def nodes(self) -> list[NodeRecord]:
        """Return all nodes, by name."""
        with self._database.reading(single=True) as connection:
            return [_record(row) for row in connection.execute(self._nodes())]

    def live_sessions(self) -> dict[str, int]:
        """Return how many sessions of the cluster are live, by their owner's name."""
        live = (sessions.c.state == "live") & sessions.c.home.startswith(CLUSTER, autoescape=True)
        owned = select(sessions.c.owner, func.count()).where(live, sessions.c.owner.is_not(None))
        with self._database.reading() as connection:
            return {owner: int(number) for owner, number in connection.execute(owned.group_by(sessions.c.owner))}

    def owners_of(self, session_ids: Sequence[str]) -> dict[str, str | None]:
        """Return the owners of those of the sessions that are in the database."""
        owners: dict[str, str | None] = {}
        with self._database.reading() as connection:
            for begin in range(0, len(session_ids), _AT_ONCE):
                named = sessions.c.session_id.in_(session_ids[begin : begin + _AT_ONCE])
                rows = connection.execute(select(sessions.c.session_id, sessions.c.owner).where(named))
                owners |= {row.session_id: row.owner for row in rows}
        return owners

    def session_of(self, agent_id: str) -> tuple[str, bool, str | None] | None:
        """Return the session of an agent in the cluster that has not ended: its id, whether it is live, and its owner.

        Args:
            agent_id: as the store has it: the group, a colon and the agent's name.
        """
        unended = (sessions.c.state == "live") | (sessions.c.state == "asleep")
        mine = (sessions.c.agent_id == agent_id) & sessions.c.home.startswith(CLUSTER, autoescape=True)
        query = select(sessions.c.session_id, sessions.c.state, sessions.c.owner).where(mine, unended)
        with self._database.reading(single=True) as connection:
            row = connection.execute(query.order_by(sessions.c.last_used_at.desc()).limit(1)).first()
        return None if row is None else (row.session_id, row.state == "live", row.owner)

    def _answering_since(self, lease_s: float) -> Any:
        """Return the SQL expression for the end of the last outage: now, if no node has renewed or joined for long."""
        last = self._latest(_every.c.lease_until) - lease_s
        return case(
            (last < self._now - _SILENCE * lease_s, self._now),
            else_=func.coalesce(self._latest(_every.c.answering_since), 0.0),
        )

    @staticmethod
    def _latest(column: ColumnElement[float]) -> Any:
        return select(func.max(column)).scalar_subquery()

    def _nodes(self) -> Any:
        left = (nodes.c.lease_until - self._now).label("lease_left_s")
        return select(nodes, left).order_by(nodes.c.node_id)


def _record(row: Row[Any]) -> NodeRecord:
    return NodeRecord(
        row.node_id,
        row.epoch,
        row.url,
        row.state,
        float(row.lease_left_s),
        row.version,
        row.protocol,
        Capacity.of(json.loads(row.capacity)),
    )
