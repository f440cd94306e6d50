"""The history's cells: their rows, and their large outputs. Only ``History`` uses this class."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from orchestrator.store.agentusage import AgentUsage
from orchestrator.store.database import Database
from orchestrator.store.payloads import KeptResult, Payloads
from orchestrator.store.prepared import Prepared
from orchestrator.store.records import CellRecord
from orchestrator.store.schema import cells, payloads, sessions

_BEGIN = insert(cells).values(
    {name: bindparam(name) for name in ("session_id", "number", "kernel_id", "code", "started_at", "bytes")}
    | {"outcome": "running", "result": '{"status": "running"}'}
)
_USE_SESSION = (
    update(sessions)
    .where(sessions.c.session_id == bindparam("of"))
    .values(last_used_at=bindparam("now"), cells=bindparam("cell"))
)
_GROW = (
    update(sessions).where(sessions.c.session_id == bindparam("of")).values(bytes=sessions.c.bytes + bindparam("more"))
)
_END = (
    update(cells)
    .where(
        cells.c.session_id == bindparam("of"),
        cells.c.number == bindparam("cell"),
        cells.c.outcome == bindparam("before"),
    )
    .values(
        outcome=bindparam("how"),
        result=bindparam("what"),
        ended_at=bindparam("at"),
        bytes=cells.c.bytes + bindparam("more"),
    )
    .returning(cells.c.cell_id, cells.c.bytes)
)


class CellTable:
    """The cells of one database. All methods block, and raise StoreError where the database fails."""

    def __init__(self, database: Database, outputs: Payloads, usage: AgentUsage) -> None:
        self._database = database
        self._usage = usage
        self._outputs = outputs
        self._begin = Prepared(_BEGIN, database.dialect)
        self._use_session = Prepared(_USE_SESSION, database.dialect)
        self._end = Prepared(_END, database.dialect)
        self._grow = Prepared(_GROW, database.dialect)

    def begin_cell(self, session_id: str, number: int, code: str, kernel_id: str) -> None:
        """Record that a cell is about to run.

        Raises:
            QuotaExceededError: the agent keeps as much as it may; nothing is recorded.
        """
        now, size = time.time(), len(code.encode())
        begun = {
            "session_id": session_id,
            "number": number,
            "kernel_id": kernel_id,
            "code": code,
            "started_at": now,
            "bytes": size,
        }
        used = {"of": session_id, "now": now, "cell": number}

        def begin(connection: Connection) -> None:
            self._usage.check(connection, session_id, "the cell has not run", size)
            self._begin.on(connection, begun)
            self._use_session.on(connection, used)

        self._database.write(begin)

    def end_cell(self, session_id: str, number: int, result: dict[str, Any]) -> None:
        """Record a cell's result. No effect if the cell has one already, or the session was deleted.

        Args:
            result: ``ExecutionResult.as_dict()``.

        Raises:
            StoreError: the result cannot be written now; it is written before the next write that succeeds.
        """
        ended_at = time.time()
        kept: list[KeptResult] = []

        def keep() -> KeptResult:
            kept[:] = kept or [self._outputs.keep(result, session_id)]
            return kept[0]

        with contextlib.suppress(OSError):  # the write below tries again, and reports it
            keep()  # before the transaction, so that nobody waits for it

        def close(connection: Connection) -> None:
            closed = self._close(connection, session_id, number, result["outcome"], keep(), ended_at)
            if closed and not self._outputs.has(keep(), session_id):  # retention has just deleted an equal output
                kept.clear()
                keep()

        self._database.write_eventually(close)

    def has_running_cells(self, session_id: str) -> bool:
        """Return whether a cell has no outcome yet: it runs, or ran when its process ended."""
        query = select(cells.c.cell_id).where(cells.c.session_id == session_id, cells.c.outcome == "running")
        with self._database.reading() as connection:
            return connection.scalar(query.limit(1)) is not None

    def end_running_cells(self, session_id: str, result: dict[str, Any]) -> None:
        """Record a result for the cells that ran when their process ended. A write that fails is made up for."""
        running = (cells.c.session_id == session_id) & (cells.c.outcome == "running")
        closed = update(cells).where(running).values(outcome=result["outcome"], result=json.dumps(result))

        def close(connection: Connection) -> None:
            code = connection.scalar(select(func.sum(cells.c.bytes)).where(running)) or 0
            connection.execute(closed)
            self._count(connection, session_id, int(code))

        self._database.write_eventually(close)

    def cells(
        self, session_id: str, *, outputs: bool = True, first: int | None = None, last: int | None = None
    ) -> list[CellRecord]:
        """Return a session's cells, in the order of their numbers.

        Args:
            outputs: whether to read the results too; ``{}`` if not.
            first, last: the numbers of the first and the last cell to return; None: of all.
        """
        wanted = cells.c.session_id == session_id
        if first is not None:
            wanted &= cells.c.number >= first
        if last is not None:
            wanted &= cells.c.number <= last
        query = select(cells).where(wanted).order_by(cells.c.number)
        if not outputs:
            query = query.with_only_columns(*(column for column in cells.c if column.name != "result"))
        places: dict[int, list[tuple[str, str]]] = {}
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
            if outputs:
                found = select(payloads).join(cells).where(wanted)
                for payload in connection.execute(found):
                    places.setdefault(payload.cell_id, []).append((payload.path, payload.digest))
        return [self._record(row, places.get(row.cell_id, [])) for row in rows]

    def own_payloads(self, session_id: str) -> set[str]:
        """Return the digests of the large outputs that only this session has."""
        mine = select(payloads.c.digest).join_from(payloads, cells).where(cells.c.session_id == session_id)
        others = (
            select(payloads.c.digest)
            .join_from(payloads, cells)
            .where(cells.c.session_id != session_id, payloads.c.digest.in_(mine))
        )
        with self._database.reading() as connection:
            return set(connection.scalars(mine)) - set(connection.scalars(others))

    def sweep_payloads(self) -> int:
        """Remove the large outputs that no cell has, a day after they were written. Returns the number of bytes.

        Raises:
            OSError: one cannot be removed.
        """
        with self._database.reading() as connection:
            query = select(cells.c.session_id, payloads.c.digest).join_from(payloads, cells).distinct()
            needed = {(row.session_id, row.digest) for row in connection.execute(query)}
        return self._outputs.sweep(needed)

    def _close(
        self, connection: Connection, session_id: str, number: int, outcome: str, kept: KeptResult, ended_at: float
    ) -> bool:
        """Write a cell's result. Returns False if it has one already, or the session was deleted."""
        sizes = {digest: size for _, digest, size in kept.places}
        ended = {
            "of": session_id,
            "cell": number,
            "before": "running",
            "how": outcome,
            "what": kept.text,
            "at": ended_at,
            "more": kept.size + sum(sizes.values()),
        }
        closed = self._end.on(connection, ended)
        if closed is None:
            return False
        cell_id, size = closed
        repeated = sum(sizes[digest] for digest in self._kept_before(connection, session_id, sizes))
        self._count(connection, session_id, size - repeated)
        if kept.places:
            rows = [
                {"cell_id": cell_id, "path": path, "digest": digest, "bytes": size}
                for path, digest, size in kept.places
            ]
            connection.execute(insert(payloads), rows)
        return True

    def _count(self, connection: Connection, session_id: str, more: int) -> None:
        """Add the bytes of a cell that has ended to the totals. Its code counts only now: one write less per cell."""
        self._grow.on(connection, {"of": session_id, "more": more})
        self._usage.add(connection, session_id, more)

    def _kept_before(self, connection: Connection, session_id: str, sizes: dict[str, int]) -> list[str]:
        """Return those of the digests that an earlier cell of the session has."""
        if not sizes:
            return []
        query = select(payloads.c.digest).join_from(payloads, cells).distinct()
        mine = query.where(cells.c.session_id == session_id, payloads.c.digest.in_(sizes))
        return list(connection.scalars(mine))

    def _record(self, row: Row[Any], places: list[tuple[str, str]]) -> CellRecord:
        fields = row._mapping
        result = self._outputs.restore(fields["result"], places, row.session_id) if "result" in fields else {}
        return CellRecord(row.number, row.kernel_id, row.code, row.started_at, row.ended_at, row.outcome, result)
