"""What adds a session's row, unless its agent has a session that is asleep or that another process owns.

SQLite gets one statement after another, which costs microseconds. PostgreSQL may be a network away: it gets all
statements together, as one transaction in one round trip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import BindParameter, Connection, Integer, Select, String, bindparam, func, insert, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect

from orchestrator.store.database import Database
from orchestrator.store.fence import Fence, is_leased, lease_is_over
from orchestrator.store.places import HELD, QUOTA_LOCK, Place
from orchestrator.store.prepared import Prepared, on_together
from orchestrator.store.schema import sessions

UNENDED = (sessions.c.state == "live") | (sessions.c.state == "asleep")  # an index serves it, but not a "!="
OF_AGENT = (sessions.c.home == bindparam("home")) & (sessions.c.agent_id == bindparam("agent_id"))
_NOT_BEGUN = "the session has not begun"
_ROW: dict[str, BindParameter[Any]] = {
    column.name: bindparam(column.name) for column in sessions.c if column.server_default is None
}
_ROW["fence"] = bindparam("new_fence")
_TAKEN = select(sessions.c.session_id).where(OF_AGENT, UNENDED, sessions.c.owner.is_distinct_from(bindparam("owner")))
_LOCK = select(func.pg_advisory_xact_lock(func.hashtext(bindparam("key", type_=String()))))


class NewSession:
    """Adds rows to one database."""

    def __init__(self, database: Database, fence: Fence) -> None:
        dialect = database.dialect
        self._database = database
        self._fence = fence
        self._found = Prepared(_finding(dialect), dialect)
        self._add = Prepared(insert(sessions).values(_ROW), dialect)
        self._is_postgres = dialect.name == "postgresql"
        if self._is_postgres:
            self._lock, self._quota_lock = Prepared(_LOCK, dialect), Prepared(QUOTA_LOCK, dialect)
            self._add_if_free = Prepared(_adding(dialect), dialect)

    def add(self, row: Mapping[str, Any], place: Place | None) -> bool:
        """Add a row. Return False if the agent has a session: nothing is added.

        Args:
            row: the columns, and "new_fence".
            place: the place of a quota that it takes.

        Raises:
            NodeLeaseError: the lease of this process's node has ended; nothing is added.
            KernelPoolExhaustedError: there is no place; nothing is added.
        """
        work = self._add_together if self._is_postgres else self._add_in_turn
        leased, taken, held = self._database.write(lambda connection: work(connection, row, place), single=True)
        if not leased:
            raise lease_is_over(_NOT_BEGUN)
        if not taken and place is not None:
            place.refuse_if_full(held)
        return not taken

    def _add_in_turn(self, connection: Connection, row: Mapping[str, Any], place: Place | None) -> Sequence[Any]:
        found = self._found.rows(connection, self._values(row, place))[0]
        leased, taken, held = found
        if leased and not taken and (place is None or held < place.quota):
            self._add.on(connection, row)
        return found

    def _add_together(self, connection: Connection, row: Mapping[str, Any], place: Place | None) -> Sequence[Any]:
        """Take the locks, and add the row: each statement sees what was committed before it began."""
        locks = [(self._lock, {"key": f"{row['home']} {row['agent_id']}"})]
        if place is not None:
            locks.append((self._quota_lock, {"charge": place.charge}))
        return on_together(connection, *locks, (self._add_if_free, self._values(row, place)))

    def _values(self, row: Mapping[str, Any], place: Place | None) -> dict[str, Any]:
        charge, quota = (None, None) if place is None else (place.charge, place.quota)
        return {**row, **self._fence.node, "of": row["session_id"], "charge": charge, "quota": quota}


def _finding(dialect: Dialect) -> Select[Any]:
    """Return the statement that tells whether a row may be added: "leased", "taken", and how many places are "held"."""
    held = HELD.scalar_subquery()
    return select(is_leased(dialect).label("leased"), _TAKEN.exists().label("taken"), held.label("held"))


def _adding(dialect: Dialect) -> Select[Any]:
    """Return the statement that adds a row if it may, and returns what ``_finding`` does.

    A second try, whose first one was done and only its answer lost, finds the same and adds nothing.
    """
    quota = bindparam("quota", type_=Integer())
    found = _finding(dialect).cte("found")
    may = found.c.leased & ~found.c.taken & (quota.is_(None) | (found.c.held < quota))
    row = select(*_ROW.values()).select_from(found).where(may)
    added = postgresql.insert(sessions).from_select(list(_ROW), row, include_defaults=False)
    once = added.on_conflict_do_nothing(index_elements=["session_id"])
    return select(found.c.leased, found.c.taken, found.c.held).add_cte(once.cte("added"))
