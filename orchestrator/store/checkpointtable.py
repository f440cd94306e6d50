"""The history's checkpoints: their rows; ``checkpointfiles`` has the files. Only ``History`` uses this class."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete, func, insert, select

from orchestrator.store.agentusage import AgentUsage
from orchestrator.store.database import Database
from orchestrator.store.fence import Claim, Fence
from orchestrator.store.records import CheckpointRecord
from orchestrator.store.schema import checkpoints

_LATER = 0.001  # seconds between two checkpoints of a session, at least


def row_of(record: CheckpointRecord) -> dict[str, Any]:
    """Return a checkpoint's row."""
    return asdict(record) | {"lost": json.dumps(record.lost)}


class CheckpointTable:
    """The checkpoints of one database. All methods block, and raise StoreError where the database fails."""

    def __init__(self, database: Database, usage: AgentUsage, fence: Fence) -> None:
        self._database = database
        self._usage = usage
        self._fence = fence

    def check_quota(self, session_id: str) -> None:
        """Check that a session's agent may keep another checkpoint.

        Raises:
            QuotaExceededError: it keeps as much as it may.
        """
        with self._database.reading() as connection:
            self._usage.check(connection, session_id, "no checkpoint was made")

    def add_checkpoint(self, claim: Claim, record: CheckpointRecord) -> list[str]:
        """Add a checkpoint whose file is in place, and survive a power failure.

        The quota bounds only what was requested. A session that must sleep keeps its state in any case, in one
        checkpoint, which replaces the one before.

        Returns:
            The ids of the session's earlier checkpoints that nobody requested. Their rows are deleted; the caller
            removes the files.

        Raises:
            NotOwnerError: another process has owned the session since.
            QuotaExceededError: the checkpoint was requested, and the agent would exceed its quota.
        """
        of_session = checkpoints.c.session_id == record.session_id
        with self._database.writing(durable=True) as connection:
            self._fence.check(connection, claim, "the checkpoint is not kept")
            unrequested = of_session & checkpoints.c.asked_for.is_(False)
            replaced = connection.execute(
                select(checkpoints.c.checkpoint_id, checkpoints.c.bytes).where(unrequested)
            ).all()
            newest = connection.scalar(select(func.max(checkpoints.c.created_at)).where(of_session))
            ids = [row.checkpoint_id for row in replaced]
            connection.execute(delete(checkpoints).where(checkpoints.c.checkpoint_id.in_(ids)))
            # The checkpoint made last is the newest, even if the clock was set back since the one before.
            created_at = max(record.created_at, (newest or 0.0) + _LATER)
            connection.execute(insert(checkpoints), [row_of(record) | {"created_at": created_at}])
            more = record.bytes - sum(row.bytes for row in replaced)
            if record.asked_for:
                self._usage.charge(connection, record.session_id, more, "no checkpoint was made")
            else:
                self._usage.add(connection, record.session_id, more)
        return ids

    def checkpoints_of(self, session_id: str) -> list[CheckpointRecord]:
        """Return a session's checkpoints, the newest first."""
        query = select(checkpoints).where(checkpoints.c.session_id == session_id)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(checkpoints.c.created_at.desc())).all()
        return [CheckpointRecord(**{**row._mapping, "lost": json.loads(row.lost)}) for row in rows]

    def drop_checkpoints(self, claim: Claim) -> list[str]:
        """Delete a session's checkpoints that nobody requested. Returns their ids; the caller removes the files.

        Raises:
            NotOwnerError: another process has owned the session since; nothing is deleted.
        """
        unrequested = (checkpoints.c.session_id == claim.session_id) & checkpoints.c.asked_for.is_(False)
        with self._database.writing() as connection:
            self._fence.check(connection, claim, "its checkpoints stay")
            dropped = connection.execute(
                delete(checkpoints).where(unrequested).returning(checkpoints.c.checkpoint_id, checkpoints.c.bytes)
            ).all()
            self._usage.add(connection, claim.session_id, -sum(row.bytes for row in dropped))
            return [row.checkpoint_id for row in dropped]

    def known_checkpoints(self) -> set[str]:
        """Return the ids of all checkpoints of all sessions."""
        with self._database.reading() as connection:
            return set(connection.scalars(select(checkpoints.c.checkpoint_id)))
