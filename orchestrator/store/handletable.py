"""What a server keeps of its sessions. Only ``History`` uses this class."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from sqlalchemy import Row, Select, delete, insert, select, update

from orchestrator.store.database import Database
from orchestrator.store.records import Expiry, HandleRecord, SessionRecord
from orchestrator.store.schema import handles, sessions

_SESSION = [sessions.c[field.name] for field in fields(SessionRecord)]


class HandleTable:
    """The handles of one database. All methods block, and raise StoreError where the database fails."""

    home: str

    def __init__(self, database: Database) -> None:
        self._database = database

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
        with self._database.writing() as connection:
            connection.execute(delete(handles).where(handles.c.session_id == record.session_id))
            connection.execute(insert(handles).values(row))

    def handle(self, group: str | None, session_id: str) -> tuple[HandleRecord, SessionRecord] | None:
        """Return a session of a group, or of any group, by its id; None if there is none of this id."""
        query = _query().where(handles.c.session_id == session_id)
        found = self._handles(query if group is None else query.where(handles.c.group_name == group))
        return found[0] if found else None

    def handle_of_agent(self, group: str, name: str) -> tuple[HandleRecord, SessionRecord] | None:
        """Return the session of a group's agent that has not ended; None if there is none."""
        mine = (handles.c.group_name == group) & (handles.c.name == name) & (sessions.c.state != "ended")
        found = self._handles(_query().where(mine).order_by(sessions.c.last_used_at.desc()).limit(1))
        return found[0] if found else None

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
            return [(_handle(row), _session(row)) for row in connection.execute(query)]


def _query() -> Select[Any]:
    mine = [column.label(f"handle_{column.name}") for column in handles.c]
    return select(*_SESSION, *mine).join(sessions, sessions.c.session_id == handles.c.session_id)


def _handle(row: Row[Any]) -> HandleRecord:
    return HandleRecord(
        row.handle_session_id,
        row.handle_group_name,
        row.handle_name,
        row.handle_policy,
        row.handle_image,
        row.handle_token_id,
        json.loads(row.handle_environment),
        json.loads(row.handle_labels),
        row.handle_expires_at,
        row.handle_on_expiry,
    )


def _session(row: Row[Any]) -> SessionRecord:
    return SessionRecord(**{column.name: row._mapping[column.name] for column in _SESSION})
