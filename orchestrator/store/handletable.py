"""What a server keeps of its sessions. Only ``History`` uses this class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Insert, Select, bindparam, select, update
from sqlalchemy.engine import Dialect

from orchestrator.store.database import Database
from orchestrator.store.prepared import Prepared, inserting
from orchestrator.store.records import Expiry, HandleRecord, SessionRecord
from orchestrator.store.schema import handles, sessions

_NAMES = [column.name for column in handles.c]
_ENVIRONMENT, _LABELS = _NAMES.index("environment"), _NAMES.index("labels")
_SESSION = [sessions.c[field.name] for field in fields(SessionRecord)]


class HandleTable:
    """The handles of one database. All methods block, and raise StoreError where the database fails."""

    home: str

    def __init__(self, database: Database) -> None:
        self._database = database
        self._put = Prepared(_putting(database.dialect), database.dialect)
        self._of_agent = Prepared(_OF_AGENT, database.dialect)

    def add_handle(self, record: HandleRecord) -> None:
        """Add a session's handle, in place of the one that it has."""
        row = {
            "session_id": record.session_id,
            "group_name": record.group,
            "name": record.name,
            "policy": record.policy,
            "image": record.image,
            "token_id": record.token_id,
            "environment": json.dumps(dict(record.environment)),
            "labels": json.dumps(dict(record.labels)),
            "expires_at": record.expires_at,
            "on_expiry": record.on_expiry,
        }
        self._database.write(lambda connection: self._put.on(connection, row), single=True)

    def handle(self, group: str | None, session_id: str) -> tuple[HandleRecord, SessionRecord] | None:
        """Return a session of a group, or of any group, by its id; None if there is none of this id."""
        query = _query().where(handles.c.session_id == session_id)
        found = self._handles(query if group is None else query.where(handles.c.group_name == group))
        return found[0] if found else None

    def handle_of_agent(self, group: str, name: str) -> tuple[HandleRecord, SessionRecord] | None:
        """Return the session of a group's agent that has not ended; None if there is none."""
        with self._database.reading(single=True) as connection:
            row = self._of_agent.on(connection, {"group": group, "agent": name})
        return None if row is None else _found(row)

    def handles(
        self, group: str | None, *, ended: bool = False, limit: int = 1000
    ) -> list[tuple[HandleRecord, SessionRecord]]:
        """Return a group's sessions, or those of all groups, the last used first."""
        query = _query().order_by(sessions.c.last_used_at.desc(), sessions.c.session_id).limit(limit)
        if group is not None:
            query = query.where(handles.c.group_name == group)
        return self._handles(query if ended else query.where(sessions.c.state != "ended"))

    def expiring(self) -> list[HandleRecord]:
        """Return the handles of this data folder's sessions that expire and have not ended."""
        query = _query().where(handles.c.expires_at.is_not(None), sessions.c.state != "ended")
        return [handle for handle, _ in self._handles(query.where(sessions.c.home == self.home))]

    def set_expiry(self, session_id: str, expires_at: float | None, on_expiry: Expiry) -> None:
        """Set when a session expires, and what happens then."""
        change = update(handles).where(handles.c.session_id == session_id)
        with self._database.writing() as connection:
            connection.execute(change.values(expires_at=expires_at, on_expiry=on_expiry))

    def _handles(self, query: Select[Any]) -> list[tuple[HandleRecord, SessionRecord]]:
        with self._database.reading(single=True) as connection:
            return [_found(row) for row in connection.execute(query)]


def _query() -> Select[Any]:
    return select(*_SESSION, *handles.c).join(sessions, sessions.c.session_id == handles.c.session_id)


_OF_AGENT = (
    _query()
    .where(handles.c.group_name == bindparam("group"), handles.c.name == bindparam("agent"))
    .where(sessions.c.state != "ended")
    .order_by(sessions.c.last_used_at.desc())
    .limit(1)
)


def _putting(dialect: Dialect) -> Insert:
    """Return the statement that adds a handle, in place of the one that its session has."""
    new = inserting(dialect, handles).values({name: bindparam(name) for name in _NAMES})
    putting: Insert = new.on_conflict_do_update(
        index_elements=["session_id"], set_={name: new.excluded[name] for name in _NAMES}
    )
    return putting


def _found(row: Sequence[Any]) -> tuple[HandleRecord, SessionRecord]:
    """Return the records of a row of ``_query``. The columns of each are in the order of its fields."""
    session, handle = row[: len(_SESSION)], list(row[len(_SESSION) :])
    handle[_ENVIRONMENT], handle[_LABELS] = json.loads(handle[_ENVIRONMENT]), json.loads(handle[_LABELS])
    return HandleRecord(*handle), SessionRecord(*session)
