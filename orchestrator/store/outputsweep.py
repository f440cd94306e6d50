"""Deletes the outputs of old cells of sessions that go on, and keeps the cells. Only ``History`` uses it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, delete, select, text, tuple_, update

from orchestrator.store.agentusage import AgentUsage
from orchestrator.store.database import Database
from orchestrator.store.payloads import Payloads
from orchestrator.store.schema import HAS_OUTPUTS, cells, payloads, sessions

_BATCH = 8  # cells that one transaction changes: a few milliseconds

Shorten = Callable[[dict[str, Any], int], dict[str, Any]]


class OutputSweep:
    """Deletes outputs of one data folder's sessions, the oldest first.

    Args:
        home: the id of the data folder.
    """

    def __init__(self, database: Database, outputs: Payloads, usage: AgentUsage, home: str) -> None:
        self._database = database
        self._outputs = outputs
        self._usage = usage
        self._home = home

    def run(self, most_bytes: int, shorten: Shorten) -> int:
        """Delete outputs until the data folder keeps at most ``most_bytes``, in short transactions. Blocks.

        Checkpoints, code and each session's newest cell stay, so the folder may keep more.

        Args:
            shorten: returns what is kept of a result, given the small part of it and the number of bytes deleted.

        Returns:
            How many bytes were deleted.

        Raises:
            StoreError: the database cannot be read or written.
            OSError: an output cannot be deleted.
        """
        freed, last = 0, (-1.0, 0)
        excess = self.total() - most_bytes
        while freed < excess and (found := self._next(*last)):
            batch = _first(found, excess - freed)
            last = batch[-1].started_at, batch[-1].cell_id
            began = time.monotonic()
            with self._database.writing() as connection:
                freed += self._sweep(connection, batch, shorten)
            time.sleep(time.monotonic() - began)  # others write meanwhile
        return freed

    def total(self) -> int:
        """Return how many bytes all agents keep in the data folder."""
        with self._database.reading() as connection:
            return self._usage.total(connection)

    def _next(self, started_at: float, cell_id: int) -> Sequence[Any]:
        """Return the oldest cells after this one whose outputs can be deleted."""
        mine = (sessions.c.session_id == cells.c.session_id) & (sessions.c.home == self._home)
        old = select(sessions.c.session_id).where(mine, cells.c.number < sessions.c.cells).exists()
        after = tuple_(cells.c.started_at, cells.c.cell_id) > tuple_(started_at, cell_id)
        query = (
            select(cells.c.cell_id, cells.c.session_id, cells.c.started_at, cells.c.bytes)
            .where(text(HAS_OUTPUTS), after, cells.c.outcome != "running", old)
            .order_by(cells.c.started_at, cells.c.cell_id)
            .limit(_BATCH)
        )
        with self._database.reading() as connection:
            return connection.execute(query).all()

    def _sweep(self, connection: Connection, batch: Sequence[Any], shorten: Shorten) -> int:
        of = sorted({row.session_id for row in batch})
        # A cell that ends meanwhile with an equal output waits, and writes the output again.
        connection.execute(
            select(sessions.c.session_id).where(sessions.c.session_id.in_(of)).order_by("session_id").with_for_update()
        )
        return sum(self._sweep_cell(connection, row.cell_id, row.session_id, shorten) for row in batch)

    def _sweep_cell(self, connection: Connection, cell_id: int, session_id: str, shorten: Shorten) -> int:
        cell = connection.execute(select(cells).where(cells.c.cell_id == cell_id, cells.c.swept == 0)).first()
        if cell is None:  # deleted meanwhile
            return 0
        large = select(payloads.c.digest, payloads.c.bytes).where(payloads.c.cell_id == cell_id).distinct()
        sizes = {row.digest: row.bytes for row in connection.execute(large)}
        size = len(cell.result.encode()) + sum(sizes.values())
        kept = json.dumps(shorten({"outcome": cell.outcome, **(json.loads(cell.result) or {})}, size))
        if size < 2 * len(kept):  # most of its bytes are its code
            return 0
        connection.execute(delete(payloads).where(payloads.c.cell_id == cell_id))
        shorter = {"result": kept, "swept": size, "bytes": cell.bytes - size + len(kept)}
        connection.execute(update(cells).where(cells.c.cell_id == cell_id).values(shorter))
        still = select(payloads.c.digest).join_from(payloads, cells).where(cells.c.session_id == session_id)
        shared = set(connection.scalars(still.where(payloads.c.digest.in_(sizes))))
        unshared = sizes.keys() - shared
        freed: int = len(cell.result.encode()) - len(kept) + sum(sizes[digest] for digest in unshared)
        row = sessions.c.session_id == session_id
        connection.execute(update(sessions).where(row).values(bytes=sessions.c.bytes - freed))
        self._usage.add(connection, session_id, -freed)
        self._outputs.delete_some(session_id, unshared)
        return freed


def _first(found: Sequence[Any], wanted: int) -> list[Any]:
    """Return as many of the rows as have ``wanted`` bytes together; at least one."""
    batch: list[Any] = []
    while len(batch) < len(found) and (not batch or sum(row.bytes for row in batch) < wanted):
        batch.append(found[len(batch)])
    return batch
