"""The history's sessions: adding, changing, finding and deleting their rows. Only ``History`` uses this class."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Connection, Row, String, Update, bindparam, delete, func, insert, select, true, update

from orchestrator.store.agentusage import AgentUsage
from orchestrator.store.checkpointtable import row_of
from orchestrator.store.database import Database
from orchestrator.store.prepared import Prepared
from orchestrator.store.records import CheckpointRecord, SessionRecord, SessionState
from orchestrator.store.schema import cells, checkpoints, commands, sessions

_NEWEST = (sessions.c.last_used_at.desc(), sessions.c.session_id)
_MOST_FOUND = 10  # sessions that one prefix returns
_BATCH = 50  # cells or commands that one transaction deletes: about a millisecond
_LONGEST_REASON = 32  # characters, as in the schema
_COLUMNS = [column for column in sessions.c if column.name != "home"]
_UNENDED = (sessions.c.state == "live") | (sessions.c.state == "asleep")  # an index serves it, but not a "!="
_OF_AGENT = (sessions.c.home == bindparam("home")) & (sessions.c.agent_id == bindparam("agent_id"))
_UNENDED_OF_AGENT = select(*_COLUMNS).where(_OF_AGENT, _UNENDED)  # with an order, SQLite would read all that ended
_LAST_END = (
    select(sessions.c.end_reason)
    .where(_OF_AGENT, sessions.c.end_reason.is_distinct_from("never_started"))
    .order_by(sessions.c.last_used_at.desc())
    .limit(1)
)
_LOCK = select(func.pg_advisory_xact_lock(func.hashtext(bindparam("key", type_=String()))))
_TAKEN = (
    select(sessions.c.session_id)
    .where(_OF_AGENT, _UNENDED, sessions.c.owner.is_distinct_from(bindparam("owner")))
    .limit(1)
)
_ADD = insert(sessions).values(
    {column.name: bindparam(column.name) for column in sessions.c if column.server_default is None}
)
_TAKE_OWNERSHIP = (
    update(sessions)
    .where(sessions.c.session_id == bindparam("of"), sessions.c.owner.is_not_distinct_from(bindparam("before")))
    .values(owner=bindparam("after"))
)


class SessionTable:
    """The sessions of one database. All methods block, and raise StoreError where the database fails.

    Attributes:
        home: the id of this host's data folder. Sessions of other hosts may be in the same database.
    """

    def __init__(self, database: Database, home: str, usage: AgentUsage) -> None:
        self._database = database
        self._usage = usage
        self.home = home
        self._unended_of_agent = Prepared(_UNENDED_OF_AGENT, database.dialect)
        self._last_end = Prepared(_LAST_END, database.dialect)
        self._lock = Prepared(_LOCK, database.dialect)
        self._taken = Prepared(_TAKEN, database.dialect)
        self._add = Prepared(_ADD, database.dialect)
        self._take = Prepared(_TAKE_OWNERSHIP, database.dialect)
        self._live = Prepared(_changing("state", "owner", "kernel_id", "runtime"), database.dialect)
        self._sleep = Prepared(_changing("state", "owner"), database.dialect)
        self._ended = Prepared(_changing("state", "owner", "end_reason"), database.dialect)

    def add_session(
        self,
        session_id: str,
        agent_id: str,
        *,
        owner: str | None,
        kernel_id: str,
        runtime: str,
        parent_id: str | None = None,
        state: SessionState = "live",
    ) -> bool:
        """Add a session, unless its agent has one that is asleep or that another process owns.

        Returns:
            False if the agent has one; nothing is added. Of two processes that begin at once, one gets True.
        """
        row = self._new_row(
            session_id, agent_id, parent_id=parent_id, state=state, owner=owner, kernel_id=kernel_id, runtime=runtime
        )

        def add(connection: Connection) -> bool:
            if connection.dialect.name == "postgresql":  # SQLite's transaction has a lock already
                self._lock.on(connection, {"key": f"{self.home} {agent_id}"})
            if self._taken.on(connection, row) is not None:
                return False
            self._add.on(connection, row)
            return True

        return self._database.write(add)

    def add_forks(
        self, parent_id: str, forks: Sequence[tuple[str, CheckpointRecord]], *, kernel_id: str, runtime: str
    ) -> None:
        """Add sleeping sessions, all or none, and survive a power failure.

        Args:
            forks: for each session its agent, and the checkpoint that it wakes from.

        Raises:
            QuotaExceededError: an agent would exceed its quota.
        """
        forked = [
            self._new_row(
                record.session_id, agent_id, parent_id=parent_id, state="asleep", kernel_id=kernel_id, runtime=runtime
            )
            for agent_id, record in forks
        ]
        with self._database.writing(durable=True) as connection:
            connection.execute(insert(sessions), forked)
            connection.execute(insert(checkpoints), [row_of(record) for _, record in forks])
            for _, record in sorted(forks, key=lambda fork: fork[0]):  # in order: two that fork at once cannot deadlock
                self._usage.charge(connection, record.session_id, record.bytes, "no session was forked")

    def session_lives(self, session_id: str, *, owner: str, kernel_id: str, runtime: str) -> None:
        """Record that a session has a kernel. No effect on a session that has ended."""
        change = _change(session_id, state="live", owner=owner, kernel_id=kernel_id, runtime=runtime)
        self._database.write(lambda connection: self._live.on(connection, change))

    def session_sleeps(self, session_id: str) -> None:
        """Record that a session has only its newest checkpoint. A write that fails is made up for, as in ``end_cell``.

        No effect on a session that has ended.
        """
        change = _change(session_id, state="asleep", owner=None)
        self._database.write_eventually(lambda connection: self._sleep.on(connection, change))

    def session_ends(self, session_id: str, reason: str) -> None:
        """Record why a session ended. A write that fails is made up for, as in ``end_cell``."""
        change = _change(session_id, state="ended", owner=None, end_reason=reason[:_LONGEST_REASON])
        self._database.write_eventually(lambda connection: self._ended.on(connection, change))

    def take_ownership(self, session_id: str, owner: str | None, new_owner: str | None) -> bool:
        """Change a session's owner from ``owner`` to ``new_owner``; None is no process.

        Returns:
            False if ``owner`` is not the owner, because another process was faster; nothing is changed.
        """
        with self._database.writing() as connection:
            return self._take.changed(connection, {"of": session_id, "before": owner, "after": new_owner}) == 1

    def sessions_of(self, agent_id: str) -> list[SessionRecord]:
        """Return the agent's sessions on this host that have not ended, the last used first."""
        self._database.write_deferred()  # an end may be among the deferred writes
        with self._database.reading() as connection:
            names = [column.name for column in _COLUMNS]
            rows = self._unended_of_agent.rows(connection, {"home": self.home, "agent_id": agent_id})
        records = [SessionRecord(**dict(zip(names, row, strict=True))) for row in rows]
        return sorted(records, key=lambda record: (-record.last_used_at, record.session_id))

    def last_end(self, agent_id: str) -> str | None:
        """Return why the session that the agent used last on this host ended; None if it has not, or if there is none.

        A session that never had a kernel does not count.
        """
        with self._database.reading() as connection:
            row = self._last_end.on(connection, {"home": self.home, "agent_id": agent_id})
        return None if row is None else row[0]

    def unended(self) -> list[SessionRecord]:
        """Return this host's sessions that have not ended, the last used first."""
        return self._select(self._is_unended())

    def sessions_here(self, *, ended: bool, limit: int) -> list[SessionRecord]:
        """Return this host's sessions, the last used first; with ``ended`` also those that have ended."""
        return self._select((sessions.c.home == self.home) if ended else self._is_unended(), limit)

    def sessions(self, agent_id: str | None = None, limit: int | None = None) -> list[SessionRecord]:
        """Return all sessions of all hosts, or one agent's, the last used first."""
        return self._select(true() if agent_id is None else sessions.c.agent_id == agent_id, limit)

    def find(self, prefix: str) -> list[SessionRecord]:
        """Return the first ten sessions, by id, whose id begins with ``prefix``, the last used first."""
        begins = sessions.c.session_id.startswith(prefix, autoescape=True)
        if self._database.dialect.name == "sqlite":  # its index serves a range, and no LIKE
            begins &= sessions.c.session_id.between(prefix, f"{prefix}\U0010ffff")
        query = select(sessions).where(begins).order_by(sessions.c.session_id).limit(_MOST_FOUND)
        with self._database.reading() as connection:
            found = [_record(row) for row in connection.execute(query)]
        return sorted(found, key=lambda record: -record.last_used_at)

    def delete(self, session_id: str, owner: str | None = None) -> list[str] | None:
        """Delete a session of this host with its cells and checkpoints, in batches.

        It has ended from the first transaction on: a process that is killed meanwhile leaves an ended session with
        fewer cells.

        Args:
            owner: the owner that the caller has seen. A session that has another owner by now is not deleted.

        Returns:
            The ids of the session's checkpoints; the caller removes the files. None if nothing was deleted: the owner
            is another one, or the session belongs to another host.
        """
        mine = (sessions.c.session_id == session_id) & (sessions.c.home == self.home)
        unchanged = sessions.c.owner.is_(None) if owner is None else sessions.c.owner == owner
        with self._database.writing() as connection:
            files = connection.scalars(
                select(checkpoints.c.checkpoint_id).where(checkpoints.c.session_id == session_id)
            ).all()
            ended = update(sessions).where(mine & unchanged).values(state="ended", end_reason="deleted", owner=None)
            if not connection.execute(ended).rowcount:
                return None
        for number in (cells.c.number, commands.c.number):
            self._delete_in_batches(session_id, number)
        with self._database.writing() as connection:
            self._delete_row(connection, session_id)
        return list(files)

    def _delete_row(self, connection: Connection, session_id: str) -> None:
        """Delete a session's row and its checkpoints' rows, and subtract its bytes from those of its agent."""
        saved = select(func.coalesce(func.sum(checkpoints.c.bytes), 0)).where(checkpoints.c.session_id == session_id)
        row = sessions.c.session_id == session_id
        found = connection.execute(
            select(sessions.c.agent_id, sessions.c.bytes, saved.scalar_subquery()).where(row)
        ).first()
        if found is not None:
            agent_id, own, of_checkpoints = found
            self._usage.add(connection, session_id, -int(own) - int(of_checkpoints))
            connection.execute(delete(sessions).where(row))
            self._usage.forget(connection, agent_id)

    def _delete_in_batches(self, session_id: str, number: Column[int]) -> None:
        """Delete a session's cells or commands in short transactions, with pauses in which others write."""
        mine = number.table.c.session_id == session_id
        some = select(number).where(mine).order_by(number).limit(_BATCH)
        deleted = _BATCH
        while deleted == _BATCH:
            began = time.monotonic()
            with self._database.writing() as connection:
                deleted = connection.execute(delete(number.table).where(mine, number.in_(some))).rowcount
            time.sleep((time.monotonic() - began) * (deleted == _BATCH))

    def excess(self, older_than: float, most_bytes: int) -> list[str]:
        """Return the ids of the sessions that retention deletes: the old ones, and the oldest above a total size.

        A session that a process owns is never among them.

        Args:
            older_than: seconds since the epoch. Sessions last used before it are returned.
            most_bytes: of this host's cells, outputs and checkpoints together. Above it only sessions that have ended
                are returned: what one agent writes must not cost another agent its state.
        """
        saved = select(func.coalesce(func.sum(checkpoints.c.bytes), 0))
        size = saved.where(checkpoints.c.session_id == sessions.c.session_id).scalar_subquery()
        unowned = (sessions.c.home == self.home) & sessions.c.owner.is_(None)
        query = select(sessions.c.session_id, sessions.c.bytes + size).where(unowned).order_by(sessions.c.last_used_at)
        old = query.where(sessions.c.last_used_at < older_than, sessions.c.state.in_(("live", "asleep", "ended")))
        young = query.where(sessions.c.last_used_at >= older_than, sessions.c.state == "ended")
        with self._database.reading() as connection:
            left = self._usage.total(connection)
            excess = []
            for session_id, freed in connection.execute(old):
                excess.append(session_id)
                left -= int(freed)
            if left > most_bytes:
                with connection.execute(young, execution_options={"yield_per": _BATCH}) as rows:
                    for session_id, freed in rows:
                        excess.append(session_id)
                        left -= int(freed)
                        if left <= most_bytes:
                            break
        return excess

    def _new_row(self, session_id: str, agent_id: str, **fields: str | None) -> dict[str, Any]:
        now = time.time()
        mine = {"session_id": session_id, "agent_id": agent_id, "home": self.home, "end_reason": None}
        return {**mine, "created_at": now, "last_used_at": now, **fields}

    def _is_unended(self) -> Any:
        return (sessions.c.home == self.home) & _UNENDED

    def _select(self, condition: Any, limit: int | None = None) -> list[SessionRecord]:
        query = select(sessions).where(condition).order_by(*_NEWEST).limit(limit)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(query)]


def _changing(*names: str) -> Update:
    """Return the statement that changes these columns of a session, unless it has ended: an end is final."""
    unended = (sessions.c.session_id == bindparam("of")) & (sessions.c.state != "ended")
    return update(sessions).where(unended).values({name: bindparam(f"new_{name}") for name in (*names, "last_used_at")})


def _change(session_id: str, **values: str | None) -> dict[str, Any]:
    """Return the parameters of a statement of ``_changing``."""
    changed = {f"new_{name}": value for name, value in values.items()}
    return {"of": session_id, "new_last_used_at": time.time(), **changed}


def _record(row: Row[Any]) -> SessionRecord:
    return SessionRecord(**{key: value for key, value in row._mapping.items() if key != "home"})
