"""The history's cells: their rows, and their large outputs. Only ``History`` uses this class."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

from sqlalchemy import Connection, Row, func, select, update

from orchestrator.store.agentusage import AgentUsage
from orchestrator.store.cellstatements import statements_of
from orchestrator.store.database import Database
from orchestrator.store.fence import Claim, Fence
from orchestrator.store.payloads import KeptResult, Payloads
from orchestrator.store.records import CellRecord
from orchestrator.store.schema import cells, payloads, sessions


class CellTable:
    """The cells of one database. All methods block, and raise StoreError where the database fails."""

    def __init__(self, database: Database, outputs: Payloads, usage: AgentUsage, fence: Fence) -> None:
        self._database = database
        self._usage = usage
        self._outputs = outputs
        self._fence = fence
        self._statements = statements_of(database.dialect, self._fence, usage)

    def begin_cell(self, claim: Claim, number: int, code: str, kernel_id: str) -> None:
        """Record that a cell is about to run.

        Raises:
            NotOwnerError: another process has owned the session since; nothing is recorded.
            QuotaExceededError: the agent keeps as much as it may; nothing is recorded.
        """
        begun = {
            "session_id": claim.session_id,
            "number": number,
            "kernel_id": kernel_id,
            "code": code,
            "started_at": time.time(),
            "bytes": len(code.encode()),
        }
        self._database.write(lambda connection: self._statements.begin(connection, claim, begun), single=True)

    def end_cell(self, claim: Claim, number: int, result: dict[str, Any]) -> None:
        """Record a cell's result. No effect if the cell has one already, or the session was deleted.

        Args:
            result: ``ExecutionResult.as_dict()``.

        Raises:
            NotOwnerError: another process has owned the session since; the result is not written, now or later.
            StoreError: the result cannot be written now; it is written before the next write that succeeds.
        """
        session_id, ended_at = claim.session_id, time.time()
        kept: list[KeptResult] = []

        def keep() -> KeptResult:
            kept[:] = kept or [self._outputs.keep(result, session_id)]
            return kept[0]

        with contextlib.suppress(OSError):  # the write below tries again, and reports it
            keep()  # before the transaction, so that nobody waits for it

        def close(connection: Connection) -> None:
            more = {"cell": number, "how": result["outcome"], "what": keep().text, "at": ended_at, "more": keep().size}
            closed = self._statements.end(connection, claim, more, keep().places)
            if closed and not self._outputs.has(keep(), session_id):  # retention has just deleted an equal output
                kept.clear()
                keep()

        self._database.write_eventually(close, single=True)

    def has_running_cells(self, session_id: str) -> bool:
        """Return whether a cell has no outcome yet: it runs, or ran when its process ended."""
        query = select(cells.c.cell_id).where(cells.c.session_id == session_id, cells.c.outcome == "running")
        with self._database.reading() as connection:
            return connection.scalar(query.limit(1)) is not None

    def end_running_cells(self, claim: Claim, result: dict[str, Any]) -> None:
        """Record a result for the cells that ran when their process ended. A write that fails is made up for.

        Raises:
            NotOwnerError: another process has owned the session since; nothing is written.
        """
        running = (cells.c.session_id == claim.session_id) & (cells.c.outcome == "running")
        closed = update(cells).where(running).values(outcome=result["outcome"], result=json.dumps(result))

        def close(connection: Connection) -> None:
            self._fence.check(connection, claim, "its cells were not ended")
            code = connection.scalar(select(func.sum(cells.c.bytes)).where(running)) or 0
            connection.execute(closed)
            grown = update(sessions).where(sessions.c.session_id == claim.session_id)
            connection.execute(grown.values(bytes=sessions.c.bytes + int(code)))  # code counts once its cell has ended
            self._usage.add(connection, claim.session_id, int(code))

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

    def _record(self, row: Row[Any], places: list[tuple[str, str]]) -> CellRecord:
        fields = row._mapping
        result = self._outputs.restore(fields["result"], places, row.session_id) if "result" in fields else {}
        return CellRecord(row.number, row.kernel_id, row.code, row.started_at, row.ended_at, row.outcome, result)
