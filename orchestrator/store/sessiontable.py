"""The history's sessions: adding, changing, finding and deleting their rows. Only ``History`` uses this class."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from sqlalchemy import Column, Connection, Row, Update, bindparam, delete, func, insert, select, true, update
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.dml import ReturningUpdate

from orchestrator.store.agentusage import AgentUsage
from orchestrator.store.checkpointtable import row_of
from orchestrator.store.database import Database
from orchestrator.store.fence import Claim, Fence, is_leased
from orchestrator.store.newsession import OF_AGENT, UNENDED, NewSession
from orchestrator.store.places import Place, Places
from orchestrator.store.prepared import Prepared
from orchestrator.store.records import CheckpointRecord, SessionRecord, SessionState
from orchestrator.store.schema import cells, checkpoints, commands, sessions

_NEWEST = (sessions.c.last_used_at.desc(), sessions.c.session_id)
_MOST_FOUND = 10  # sessions that one prefix returns
_BATCH = 50  # cells or commands that one transaction deletes: about a millisecond
_LONGEST_REASON = 32  # characters, as in the schema
_COLUMNS = [sessions.c[field.name] for field in fields(SessionRecord)]
_UNENDED_OF_AGENT = select(*_COLUMNS).where(OF_AGENT, UNENDED)  # with an order, SQLite would read all that ended
_LAST_END = (
    select(sessions.c.end_reason)
    .where(OF_AGENT, sessions.c.end_reason.is_distinct_from("never_started"))
    .order_by(sessions.c.last_used_at.desc())
    .limit(1)
)
_CHARGED = update(sessions).where(sessions.c.session_id == bindparam("of")).values(charged=bindparam("charged"))
_OWNED = select(sessions.c.fence).where(
    sessions.c.session_id == bindparam("of"), sessions.c.owner == bindparam("after")
)


class SessionTable:
    """The sessions of one database. All methods block, and raise StoreError where the database fails.

    Attributes:
        home: the id of this host's data folder. Sessions of other hosts may be in the same database.
    """

    def __init__(self, database: Database, home: str, usage: AgentUsage, fence: Fence) -> None:
        self._database = database
        self._usage = usage
        self.home = home
        self._unended_of_agent = Prepared(_UNENDED_OF_AGENT, database.dialect)
        self._last_end = Prepared(_LAST_END, database.dialect)
        self._fence = fence
        self._places = Places(database.dialect)
        self._new = NewSession(database, fence)
        self._charge = Prepared(_CHARGED, database.dialect)
        self._take = Prepared(_taking(database.dialect), database.dialect)
        self._owned = Prepared(_OWNED, database.dialect)
        self._live = Prepared(_changing(database.dialect, "state", "owner", "kernel_id", "runtime"), database.dialect)
        self._sleep = Prepared(_changing(database.dialect, "state", "owner"), database.dialect)
        self._ended = Prepared(_changing(database.dialect, "state", "owner", "end_reason"), database.dialect)

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
        place: Place | None = None,
    ) -> Claim | None:
        """Add a session, unless its agent has one that is asleep or that another process owns.

        Args:
            place: the place of a quota that it takes.

        Returns:
            The claim of its owner. None if the agent has a session: nothing is added. Of two processes that begin at
            once, one gets a claim.

        Raises:
            KernelPoolExhaustedError: there is no place; nothing is added.
        """
        claim = Claim(session_id, 0 if owner is None else 1)
        row = self._new_row(
            session_id, agent_id, parent_id=parent_id, state=state, owner=owner, kernel_id=kernel_id, runtime=runtime
        ) | {"new_fence": claim.fence, "charged": None if place is None else place.charge}
        return claim if self._new.add(row, place) else None

    def add_forks(
        self, parent: Claim, forks: Sequence[tuple[str, CheckpointRecord]], *, kernel_id: str, runtime: str
    ) -> None:
        """Add sleeping sessions, all or none, and survive a power failure.

        Args:
            parent: on the session that they were forked from.
            forks: for each session its agent, and the checkpoint that it wakes from.

        Raises:
            NotOwnerError: another process has owned the parent since.
            QuotaExceededError: an agent would exceed its quota.
        """
        parent_id = parent.session_id
        forked = [
            self._new_row(
                record.session_id, agent_id, parent_id=parent_id, state="asleep", kernel_id=kernel_id, runtime=runtime
            )
            for agent_id, record in forks
        ]
        with self._database.writing(durable=True) as connection:
            self._fence.check(connection, parent, "it was not forked")
            connection.execute(insert(sessions), forked)
            connection.execute(insert(checkpoints), [row_of(record) for _, record in forks])
            for _, record in sorted(forks, key=lambda fork: fork[0]):  # in order: two that fork at once cannot deadlock
                self._usage.charge(connection, record.session_id, record.bytes, "no session was forked")

    def session_lives(self, claim: Claim, *, owner: str, kernel_id: str, runtime: str) -> None:
        """Record that a session has a kernel. No effect on a session that has ended.

        Raises:
            NotOwnerError: another process has owned the session since.
        """
        change = _change(state="live", owner=owner, kernel_id=kernel_id, runtime=runtime)
        self._database.write(partial(self._changed, self._live, claim, change, "it has no kernel here"), single=True)

    def session_sleeps(self, claim: Claim) -> None:
        """Record that a session has only its newest checkpoint. A write that fails is made up for, as in ``end_cell``.

        No effect on a session that has ended.

        Raises:
            NotOwnerError: another process has owned the session since.
        """
        change = _change(state="asleep", owner=None)
        change_row = partial(self._changed, self._sleep, claim, change, "it was not put to sleep")
        self._database.write_eventually(change_row, single=True)

    def session_ends(self, claim: Claim, reason: str) -> None:
        """Record why a session ended. A write that fails is made up for, as in ``end_cell``.

        Raises:
            NotOwnerError: another process has owned the session since.
        """
        change = _change(state="ended", owner=None, end_reason=reason[:_LONGEST_REASON])
        change_row = partial(self._changed, self._ended, claim, change, "it was not ended")
        self._database.write_eventually(change_row, single=True)

    def _changed(
        self, statement: Prepared, claim: Claim, change: Mapping[str, Any], refused: str, connection: Connection
    ) -> None:
        if not statement.changed(connection, {**change, **self._fence.values(claim)}):
            self._fence.check(connection, claim, refused)  # else the session has ended, or was deleted

    def take_ownership(
        self, session_id: str, owner: str | None, new_owner: str | None, *, place: Place | None = None
    ) -> Claim | None:
        """Change a session's owner from ``owner`` to ``new_owner``; None is no process.

        Args:
            place: the place of a quota that the session takes. None: it keeps the one that it has.

        Returns:
            The new owner's claim. None if ``owner`` is not the owner, because another process was faster; nothing is
            changed.

        Raises:
            KernelPoolExhaustedError: there is no place; nothing is changed.
        """

        tries = 0

        def take(connection: Connection) -> Claim | None:
            nonlocal tries
            tries += 1
            if place is not None:
                self._places.take(connection, place, session_id)
            row = self._take.on(connection, {**self._fence.node, "of": session_id, "before": owner, "after": new_owner})
            if row is None and tries > 1:  # the first try may have done it, and only its answer was lost
                row = self._owned.on(connection, {"of": session_id, "after": new_owner})
            if row is None:
                self._fence.check_lease(connection, "the session is not taken over")
            elif place is not None:
                self._charge.on(connection, {"of": session_id, "charged": place.charge})
            return None if row is None else Claim(session_id, int(row[0]))

        return self._database.write(take, single=place is None)

    def places_taken(self, charge: str) -> int:
        """Return how many places of a quota are taken on the nodes of the cluster."""
        with self._database.reading() as connection:
            return self._places.held(connection, charge)

    def sessions_of(self, agent_id: str) -> list[SessionRecord]:
        """Return the agent's sessions on this host that have not ended, the last used first."""
        self._database.write_deferred()  # an end may be among the deferred writes
        with self._database.reading(single=True) as connection:
            names = [column.name for column in _COLUMNS]
            rows = self._unended_of_agent.rows(connection, {"home": self.home, "agent_id": agent_id})
        records = [SessionRecord(**dict(zip(names, row, strict=True))) for row in rows]
        return sorted(records, key=lambda record: (-record.last_used_at, record.session_id))

    def last_end(self, agent_id: str) -> str | None:
        """Return why the session that the agent used last on this host ended; None if it has not, or if there is none.

        A session that never had a kernel does not count.
        """
        with self._database.reading(single=True) as connection:
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
        with self._database.reading(long=True) as connection:
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
        return (sessions.c.home == self.home) & UNENDED

    def _select(self, condition: Any, limit: int | None = None) -> list[SessionRecord]:
        query = select(sessions).where(condition).order_by(*_NEWEST).limit(limit)
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(query)]


def _taking(dialect: Dialect) -> ReturningUpdate[Any]:
    """Return the statement that changes a session's owner, for a process whose node has its lease."""
    unchanged = sessions.c.owner.is_not_distinct_from(bindparam("before"))
    taken = update(sessions).where(sessions.c.session_id == bindparam("of"), unchanged, is_leased(dialect))
    return taken.values(owner=bindparam("after"), fence=sessions.c.fence + 1).returning(sessions.c.fence)


def _changing(dialect: Dialect, *names: str) -> Update:
    """Return the fenced statement that changes these columns of a session, unless it has ended: an end is final."""
    mine = (sessions.c.session_id == bindparam("of")) & (sessions.c.fence == bindparam("fence"))
    unended = update(sessions).where(mine, sessions.c.state != "ended", is_leased(dialect))
    return unended.values({name: bindparam(f"new_{name}") for name in (*names, "last_used_at")})


def _change(**values: str | None) -> dict[str, Any]:
    """Return the new values of a statement of ``_changing``."""
    return {"new_last_used_at": time.time(), **{f"new_{name}": value for name, value in values.items()}}


def _record(row: Row[Any]) -> SessionRecord:
    return SessionRecord(**{column.name: row._mapping[column] for column in _COLUMNS})
