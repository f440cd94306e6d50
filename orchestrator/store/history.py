"""History: every session and cell, kept outside the process, in SQLite or PostgreSQL.

A cell's row is committed before the cell runs, and closed before its result is returned: after a crash it says which
cell was running. All methods block; ``History.run`` calls one in the history's own thread, in the order of asking.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    Row,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_random

from orchestrator.errors import StoreError
from orchestrator.store import schema
from orchestrator.store.payloads import Payloads
from orchestrator.store.prepared import Prepared
from orchestrator.store.schema import cells, checkpoints, identity, payloads, sessions
from orchestrator.store.wholefile import write_once

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

SessionState = Literal["live", "asleep", "ended"]
_BUSY = 10_000  # milliseconds that SQLite waits for another process's transaction
_CONNECT = 10  # seconds to reach PostgreSQL


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """One session as the history has it.

    Attributes:
        parent_id: the session that it was forked from.
        owner: the process that has it, as ``owner_name`` writes it; None for nobody.
        state: "live" (it has, or at its owner's death had, a kernel), "asleep" (only a checkpoint) or "ended".
        end_reason: why it ended.
        created_at, last_used_at: seconds since the epoch.
        cells: the number of its last one.
    """

    session_id: str
    agent_id: str
    parent_id: str | None
    owner: str | None
    state: SessionState
    end_reason: str | None
    created_at: float
    last_used_at: float
    kernel_id: str
    runtime: str
    cells: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class CellRecord:
    """One cell.

    Attributes:
        outcome: as in ``ExecutionResult``; "running" where it is not known yet.
        started_at, ended_at: seconds since the epoch.
        result: the dict form; ``{"status": "running"}`` for one that runs.
    """

    number: int
    kernel_id: str
    code: str
    started_at: float
    ended_at: float | None
    outcome: str
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """A checkpoint file, and which cell's effects it has last.

    Attributes:
        asked_for: whether the caller wanted it, and not Cellblock itself.
        lost: what could not be captured: ``{"name", "kind", "reason"}`` each.
    """

    checkpoint_id: str
    session_id: str
    created_at: float
    cell: int
    asked_for: bool
    bytes: int
    lost: list[dict[str, str]]


_BEGIN_CELL = insert(cells).values(
    {name: bindparam(name) for name in ("session_id", "number", "kernel_id", "code", "started_at", "bytes")}
    | {"outcome": "running", "result": '{"status": "running"}'}
)
_USE_SESSION = update(sessions).where(sessions.c.session_id == bindparam("of")).values(last_used_at=bindparam("now"))
_END_CELL = (
    update(cells)
    .where(cells.c.session_id == bindparam("of"), cells.c.number == bindparam("cell"))
    .values(
        outcome=bindparam("how"),
        result=bindparam("what"),
        ended_at=bindparam("at"),
        bytes=func.length(cells.c.code) + bindparam("more"),
    )
    .returning(cells.c.cell_id)
)


class History:
    """One database, with the folder beside it that has the large outputs.

    Args:
        url: SQLAlchemy's form: "sqlite:///…" or "postgresql+psycopg://…".
        folder: of this host; made where it is missing.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._folder = folder
        self._engine = _make_engine(url)
        self._payloads = Payloads(folder / "payloads")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cellblock-history")
        self._owed: list[Callable[[Connection], object]] = []  # what could not be written yet, in order
        self.home = ""
        dialect = self._engine.dialect
        self._begin_cell = Prepared(_BEGIN_CELL, dialect)
        self._use_session = Prepared(_USE_SESSION, dialect)
        self._end_cell = Prepared(_END_CELL, dialect)

    @classmethod
    def open(cls, url: str, folder: Path) -> Self:
        """Open it, and bring it to the newest schema.

        Raises:
            StoreError: it cannot be reached, read or written, a newer Cellblock has written it, or the folder's files
                belong to another database.
        """
        with _explained(f"the history {_without_password(url)}"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            history = cls(url, folder)
            try:
                history.home = _home(folder)
                with history._writing() as connection:
                    schema.migrate(connection)
                    database_id = connection.execute(select(identity.c.database_id)).scalar_one()
                _refuse_foreign_files(folder, database_id)  # only now: what is not committed has no id
            except BaseException:
                history.close()
                raise
        return history

    def close(self) -> None:
        """Wait for what was asked for, and let go of the database."""
        self._thread.shutdown(wait=True)
        self._engine.dispose()

    async def run(self, method: Callable[Concatenate[Self, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method in the history's thread. Once begun it is finished, even when the caller is cancelled.

        Raises:
            StoreError: the database cannot be reached, read or written.
        """
        loop = asyncio.get_running_loop()
        try:
            done = loop.run_in_executor(self._thread, lambda: method(self, *args, **kwargs))
        except RuntimeError as error:
            raise StoreError("the history is closed: the manager has been shut down.") from error
        return await asyncio.shield(done)

    def submit(self, method: Callable[Concatenate[Self, P], T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have a method called in the history's thread, after what was asked for before. What fails there is logged."""
        self._thread.submit(lambda: method(self, *args, **kwargs)).add_done_callback(_log_failure)

    # Sessions

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
    ) -> None:
        """Add a session."""
        now = time.time()
        added = insert(sessions).values(
            session_id=session_id,
            agent_id=agent_id,
            parent_id=parent_id,
            home=self.home,
            owner=owner,
            state=state,
            created_at=now,
            last_used_at=now,
            kernel_id=kernel_id,
            runtime=runtime,
        )
        self._write(lambda connection: connection.execute(added))

    def add_forks(
        self, parent_id: str, forks: Sequence[tuple[str, CheckpointRecord]], *, kernel_id: str, runtime: str
    ) -> None:
        """Add sleeping sessions, all or none, each with its agent and the checkpoint that it is woken from."""
        now = time.time()
        added = [
            {
                "session_id": record.session_id,
                "agent_id": agent_id,
                "parent_id": parent_id,
                "home": self.home,
                "state": "asleep",
                "created_at": now,
                "last_used_at": now,
                "kernel_id": kernel_id,
                "runtime": runtime,
            }
            for agent_id, record in forks
        ]
        noted = [_checkpoint_row(record) for _, record in forks]
        with self._writing(durable=True) as connection:
            connection.execute(insert(sessions), added)
            connection.execute(insert(checkpoints), noted)

    def session_lives(self, session_id: str, *, owner: str, kernel_id: str, runtime: str) -> None:
        """Note that a session that has not ended has a kernel."""
        self._write(_updating(session_id, state="live", owner=owner, kernel_id=kernel_id, runtime=runtime))

    def session_sleeps(self, session_id: str) -> None:
        """Note that a session has no kernel, and goes on from its newest checkpoint. Like ``end_cell``."""
        self._owe(_updating(session_id, state="asleep", owner=None))

    def session_ends(self, session_id: str, reason: str) -> None:
        """Note why a session is over. Like ``end_cell``."""
        self._owe(_updating(session_id, state="ended", owner=None, end_reason=reason[:32]))

    def take_ownership(self, session_id: str, owner: str | None, new_owner: str | None) -> bool:
        """Pass a session from ``owner`` on; None is nobody. False when another process was quicker."""
        with self._writing() as connection:
            changed = connection.execute(
                update(sessions)
                .where(sessions.c.session_id == session_id, sessions.c.owner.is_not_distinct_from(owner))
                .values(owner=new_owner)
            )
            return changed.rowcount == 1

    def sessions_of(self, agent_id: str) -> list[SessionRecord]:
        """Return the agent's sessions on this host that have not ended, the last used first."""
        mine = (sessions.c.agent_id == agent_id) & (sessions.c.home == self.home) & (sessions.c.state != "ended")
        if self._owed:  # what they are may be among it
            self._write(lambda _connection: None)
        with self._reading() as connection:
            return [_session(row) for row in connection.execute(_with_totals().where(mine).order_by(*_NEWEST))]

    def unended(self) -> list[SessionRecord]:
        """Return this host's sessions that have not ended."""
        mine = (sessions.c.home == self.home) & (sessions.c.state != "ended")
        with self._reading() as connection:
            return [_session(row) for row in connection.execute(_with_totals().where(mine))]

    def sessions(self, agent_id: str | None = None, limit: int | None = None) -> list[SessionRecord]:
        """Return all sessions, or one agent's, the last used first."""
        query = _with_totals().order_by(*_NEWEST).limit(limit)
        if agent_id is not None:
            query = query.where(sessions.c.agent_id == agent_id)
        with self._reading() as connection:
            return [_session(row) for row in connection.execute(query)]

    def find(self, prefix: str) -> list[SessionRecord]:
        """Return the sessions whose id begins so."""
        query = _with_totals().where(sessions.c.session_id.startswith(prefix, autoescape=True)).order_by(*_NEWEST)
        with self._reading() as connection:
            return [_session(row) for row in connection.execute(query.limit(10))]

    def delete(self, session_id: str, owner: str | None = None) -> list[str] | None:
        """Delete a session of this host with its cells.

        Args:
            owner: who had it when it was looked at.

        Returns:
            The ids of its checkpoints, whose files are the caller's to remove; None where somebody has it now, or it is
            another host's: then it is as it was.
        """
        mine = (sessions.c.session_id == session_id) & (sessions.c.home == self.home)
        unchanged = sessions.c.owner.is_(None) if owner is None else sessions.c.owner == owner
        with self._writing() as connection:
            files = connection.scalars(
                select(checkpoints.c.checkpoint_id).where(checkpoints.c.session_id == session_id)
            ).all()
            deleted = connection.execute(delete(sessions).where(mine & unchanged)).rowcount
        return list(files) if deleted else None

    def excess(self, older_than: float, most_bytes: int) -> list[str]:
        """Return the ids of the sessions that are to go: unused since ``older_than``, and the oldest beyond a size.

        Args:
            older_than: seconds since the epoch.
            most_bytes: of this host's cells, outputs and checkpoints together. Only sessions that have ended go for
                it: what one agent keeps writing must not cost another its state. One that a process has is never named.
        """
        with self._reading() as connection:
            rows = connection.execute(_with_totals().where(sessions.c.home == self.home)).all()
            of_session = select(checkpoints.c.session_id, func.sum(checkpoints.c.bytes))
            sizes: dict[str, int] = {
                session: int(size)
                for session, size in connection.execute(of_session.group_by(checkpoints.c.session_id))
            }
        records = sorted(map(_session, rows), key=lambda found: found.last_used_at)
        total = sum(record.bytes + sizes.get(record.session_id, 0) for record in records)
        gone = []
        for record in records:
            too_much = record.state == "ended" and total > most_bytes
            if record.owner is None and (record.last_used_at < older_than or too_much):
                gone.append(record.session_id)
                total -= record.bytes + sizes.get(record.session_id, 0)
        return gone

    def sweep_payloads(self) -> int:
        """Remove the files of large outputs that no cell has any more. Returns the bytes."""
        with self._reading() as connection:
            needed = set(connection.scalars(select(payloads.c.digest).distinct()))
        return self._payloads.sweep(needed.__contains__)

    # Cells

    def begin_cell(self, session_id: str, number: int, code: str, kernel_id: str) -> None:
        """Note that a cell is about to run."""
        now = time.time()
        begun = {
            "session_id": session_id,
            "number": number,
            "kernel_id": kernel_id,
            "code": code,
            "started_at": now,
            "bytes": len(code),
        }
        used = {"of": session_id, "now": now}
        self._write(lambda connection: (self._begin_cell.on(connection, begun), self._use_session.on(connection, used)))

    def end_cell(self, session_id: str, number: int, result: dict[str, Any]) -> None:
        """Note a cell's result. One that cannot be written now is written with the next that can."""
        ended_at = time.time()
        self._owe(lambda connection: self._close_cell(connection, session_id, number, result, ended_at))

    def has_running_cells(self, session_id: str) -> bool:
        """Whether cells were running when their process ended."""
        query = select(cells.c.cell_id).where(cells.c.session_id == session_id, cells.c.outcome == "running")
        with self._reading() as connection:
            return connection.scalar(query.limit(1)) is not None

    def end_running_cells(self, session_id: str, result: dict[str, Any]) -> None:
        """Close the cells that were running when their process ended. Like ``end_cell``."""
        running = (cells.c.session_id == session_id) & (cells.c.outcome == "running")
        closed = update(cells).where(running).values(outcome=result["outcome"], result=json.dumps(result))
        self._owe(lambda connection: connection.execute(closed))

    def cells(self, session_id: str, *, outputs: bool = True) -> list[CellRecord]:
        """Return a session's cells, in order.

        Args:
            outputs: whether with what they put out.
        """
        query = select(cells).where(cells.c.session_id == session_id).order_by(cells.c.number)
        if not outputs:
            query = query.with_only_columns(*(column for column in cells.c if column.name != "result"))
        places: dict[int, list[tuple[str, str]]] = {}
        with self._reading() as connection:
            rows = connection.execute(query).all()
            if outputs:
                found = select(payloads).join(cells).where(cells.c.session_id == session_id)
                for payload in connection.execute(found):
                    places.setdefault(payload.cell_id, []).append((payload.path, payload.digest))
        return [self._cell(row, places.get(row.cell_id, [])) for row in rows]

    # Checkpoints

    def add_checkpoint(self, record: CheckpointRecord) -> list[str]:
        """Note a checkpoint whose file is in place.

        Returns:
            The ids of those that it replaces, whose files are the caller's to remove: the session's earlier ones that
            nobody had asked for.
        """
        with self._writing(durable=True) as connection:
            replaced = connection.scalars(
                select(checkpoints.c.checkpoint_id).where(
                    checkpoints.c.session_id == record.session_id, checkpoints.c.asked_for.is_(False)
                )
            ).all()
            newest = connection.scalar(
                select(func.max(checkpoints.c.created_at)).where(checkpoints.c.session_id == record.session_id)
            )
            connection.execute(delete(checkpoints).where(checkpoints.c.checkpoint_id.in_(replaced)))
            # The last one made is the newest, even when the clock was set back since the one before.
            created_at = max(record.created_at, (newest or 0.0) + 0.001)
            connection.execute(insert(checkpoints), [_checkpoint_row(record) | {"created_at": created_at}])
        return list(replaced)

    def checkpoints_of(self, session_id: str) -> list[CheckpointRecord]:
        """Return a session's checkpoints, the newest first."""
        query = select(checkpoints).where(checkpoints.c.session_id == session_id)
        with self._reading() as connection:
            rows = connection.execute(query.order_by(checkpoints.c.created_at.desc())).all()
        return [CheckpointRecord(**{**row._mapping, "lost": json.loads(row.lost)}) for row in rows]

    def drop_checkpoints(self, session_id: str) -> list[str]:
        """Forget a session's checkpoints that nobody asked for, whose files are the caller's to remove."""
        unasked = (checkpoints.c.session_id == session_id) & checkpoints.c.asked_for.is_(False)
        with self._writing() as connection:
            dropped = connection.execute(delete(checkpoints).where(unasked).returning(checkpoints.c.checkpoint_id))
            return list(dropped.scalars())

    def known_checkpoints(self) -> set[str]:
        """Return the ids of all checkpoints."""
        with self._reading() as connection:
            return set(connection.scalars(select(checkpoints.c.checkpoint_id)))

    # How

    def _owe(self, work: Callable[[Connection], object]) -> None:
        """Do ``work`` now, or, where that fails, before whatever can be written next.

        Raises:
            StoreError: it is still to be done.
        """
        self._owed.append(work)
        self._write(lambda _connection: None)

    def _write(self, work: Callable[[Connection], T]) -> T:
        """Do ``work`` in a transaction, after what could not be done before."""
        owed = list(self._owed)
        with self._writing() as connection:
            for earlier in owed:
                earlier(connection)
            done = work(connection)
        del self._owed[: len(owed)]
        return done

    def _close_cell(
        self, connection: Connection, session_id: str, number: int, result: dict[str, Any], ended_at: float
    ) -> None:
        kept, found = self._payloads.take_out(result)
        encoded = json.dumps(kept)
        ended = {
            "of": session_id,
            "cell": number,
            "how": result["outcome"],
            "what": encoded,
            "at": ended_at,
            "more": len(encoded) + sum(size for _, _, size in found),
        }
        closed = self._end_cell.on(connection, ended)
        if closed is not None and found:  # a session may have been deleted meanwhile
            rows = [
                {"cell_id": closed[0], "path": path, "digest": digest, "bytes": size} for path, digest, size in found
            ]
            connection.execute(insert(payloads), rows)

    def _cell(self, row: Row[Any], places: list[tuple[str, str]]) -> CellRecord:
        fields = row._mapping
        result = json.loads(fields["result"]) if "result" in fields else {}
        self._payloads.put_back(result, places)
        return CellRecord(row.number, row.kernel_id, row.code, row.started_at, row.ended_at, row.outcome, result)

    @contextlib.contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[Connection]:
        """Write in one transaction.

        Args:
            durable: whether it, and all before it, must outlive a loss of power too; else only the end of the process.
        """
        with (
            self._explained(),
            self._engine.connect() as connection,
            connection.execution_options(durable=durable).begin(),
        ):
            yield connection

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._explained(), self._engine.connect() as connection:
            yield connection.execution_options(reading=True)

    def _explained(self) -> contextlib.AbstractContextManager[None]:
        return _explained("the history", self._engine.dialect.loaded_dbapi.Error)


def _log_failure(done: Future[Any]) -> None:
    if (error := done.exception()) is not None:
        _log.error("the history could not be written", exc_info=error)


_NEWEST = (sessions.c.last_used_at.desc(), sessions.c.session_id)


def _with_totals() -> Any:
    totals = (
        select(cells.c.session_id, func.max(cells.c.number).label("cells"), func.sum(cells.c.bytes).label("bytes"))
        .group_by(cells.c.session_id)
        .subquery()
    )
    return select(
        sessions, func.coalesce(totals.c.cells, 0).label("cells"), func.coalesce(totals.c.bytes, 0).label("bytes")
    ).outerjoin(totals, totals.c.session_id == sessions.c.session_id)


def _updating(session_id: str, **values: Any) -> Callable[[Connection], object]:
    """Change a session that has not ended: an end is for good."""
    unended = (sessions.c.session_id == session_id) & (sessions.c.state != "ended")
    updated = update(sessions).where(unended).values(last_used_at=time.time(), **values)
    return lambda connection: connection.execute(updated)


def _checkpoint_row(record: CheckpointRecord) -> dict[str, Any]:
    return asdict(record) | {"lost": json.dumps(record.lost)}


def _session(row: Row[Any]) -> SessionRecord:
    return SessionRecord(**{key: value for key, value in row._mapping.items() if key != "home"})


def _make_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            engine = create_engine(parsed, connect_args={"timeout": _BUSY / 1000, "check_same_thread": False})
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
            return engine
        if parsed.get_backend_name() == "postgresql":
            return create_engine(parsed, connect_args={"connect_timeout": _CONNECT}, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise StoreError(
            f"CELLBLOCK_STORE_URL cannot be used: {error}.",
            remedy="Write sqlite:////path/history.db, or postgresql+psycopg://user@host/name and install "
            "cellblock[postgres].",
        ) from error
    raise StoreError(
        f"CELLBLOCK_STORE_URL names {parsed.get_backend_name()!r}; the history is kept in SQLite or PostgreSQL."
    )


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    _keep_a_log(connection)
    connection.execute("PRAGMA foreign_keys=ON")


# SQLite waits for every lock but this one, which a new database needs once: seen with four that opened one at once.
@retry(
    retry=retry_if_exception_type(sqlite3.OperationalError),
    stop=stop_after_delay(_BUSY / 1000),
    wait=wait_random(0.005, 0.05),
    reraise=True,
)
def _keep_a_log(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes the lock when it begins: one that read first would have to fail where another has written."""
    options = connection.get_execution_options()
    wanted = "FULL" if options.get("durable", False) else "NORMAL"
    driver: Any = connection.connection.driver_connection
    if connection.info.get("synchronous") != wanted:
        driver.execute(f"PRAGMA synchronous={wanted}")
        connection.info["synchronous"] = wanted
    driver.execute("BEGIN" if options.get("reading", False) else "BEGIN IMMEDIATE")


def _home(folder: Path) -> str:
    """Return the id of a data folder, so that hosts that share a database know whose files are whose."""
    return write_once(folder / "id", secrets.token_hex(16).encode()).decode("ascii", "replace")[:32]


def _refuse_foreign_files(folder: Path, database_id: str) -> None:
    """Compare a database with the one that a data folder's files belong to: to any other they would look unneeded."""
    if write_once(folder / "database", database_id.encode()) != database_id.encode():
        raise StoreError(
            f"the files in {folder} belong to another database than CELLBLOCK_STORE_URL names.",
            remedy="Set CELLBLOCK_STORE_URL to that one, or CELLBLOCK_DATA_DIR to another folder.",
        )


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "at CELLBLOCK_STORE_URL"


@contextlib.contextmanager
def _explained(what: str, driver: type[Exception] = SQLAlchemyError) -> Iterator[None]:
    try:
        yield
    except StoreError:
        raise
    except (SQLAlchemyError, OSError, driver) as error:
        said = str(getattr(error, "orig", None) or getattr(error, "strerror", None) or error).strip().splitlines()
        raise StoreError(
            f"{what} cannot be read or written: {said[0] if said else type(error).__name__}.",
            remedy="See that CELLBLOCK_DATA_DIR can be written to and has room, and that CELLBLOCK_STORE_URL answers.",
        ) from error
