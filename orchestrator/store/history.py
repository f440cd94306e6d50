"""History: every session, cell, command and checkpoint, kept outside the process, in SQLite or PostgreSQL.

A cell's row is committed before the cell runs, and closed before the cell's result is returned. After a crash the
history shows which cell was running.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import stat
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from orchestrator.errors import NotOwnerError, StoreError
from orchestrator.limits import MIB
from orchestrator.settings import Settings
from orchestrator.store.agentusage import AgentUsage
from orchestrator.store.blobplace import BlobPlace
from orchestrator.store.celltable import CellTable
from orchestrator.store.checkpointtable import CheckpointTable
from orchestrator.store.commandtable import CommandTable
from orchestrator.store.database import Database, explained
from orchestrator.store.fence import Claim, Fence
from orchestrator.store.handletable import HandleTable
from orchestrator.store.nodetable import CLUSTER, NodeTable
from orchestrator.store.outputsweep import OutputSweep, Shorten
from orchestrator.store.payloads import Payloads
from orchestrator.store.records import (
    CellRecord,
    CheckpointRecord,
    CommandRecord,
    HandleRecord,
    SessionRecord,
    SessionState,
    TokenRecord,
)
from orchestrator.store.sessiontable import SessionTable
from orchestrator.store.storeurl import mask
from orchestrator.store.tokentable import TokenTable
from orchestrator.store.wholefile import write_once

__all__ = [
    "CellRecord",
    "CheckpointRecord",
    "Claim",
    "CommandRecord",
    "HandleRecord",
    "History",
    "SessionRecord",
    "SessionState",
    "TokenRecord",
]

_log = logging.getLogger(__name__)
BESIDE = 8  # threads for large outputs, each begun when it is first needed
P = ParamSpec("P")
T = TypeVar("T")


class History(SessionTable, CellTable, CheckpointTable, CommandTable, HandleTable, TokenTable, NodeTable):
    """One database, and the large outputs beside it.

    The methods for its tables are in the tables' classes. They all block: ``run``
    and ``submit`` call them in the history's own thread, in the order of the calls; ``run_beside`` calls those that
    move large outputs, so that no other agent waits for one agent's outputs.

    Args:
        database: at the newest schema; ``close`` closes it.
        home: the id of this host's data folder.
        outputs: keeps the large outputs.
        agent_quota: bytes that one agent may keep in this data folder; None: any number.

    Attributes:
        place: where ``open`` has found its blobs.
    """

    place: BlobPlace

    def __init__(self, database: Database, home: str, outputs: Payloads, agent_quota: int | None = None) -> None:
        usage, fence = AgentUsage(database.dialect, home, agent_quota), Fence(database.dialect)
        SessionTable.__init__(self, database, home, usage, fence)
        CellTable.__init__(self, database, outputs, usage, fence)
        CheckpointTable.__init__(self, database, usage, fence)
        CommandTable.__init__(self, database, usage, fence)
        HandleTable.__init__(self, database)
        TokenTable.__init__(self, database)
        NodeTable.__init__(self, database)
        self._output_sweep = OutputSweep(database, outputs, usage, home)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cellblock-history")
        self._beside = ThreadPoolExecutor(BESIDE, thread_name_prefix="cellblock-outputs")

    @classmethod
    def open(
        cls,
        url: str,
        folder: Path,
        *,
        agent_quota: int | None = None,
        shared: Settings | None = None,
        of_cluster: bool = False,
    ) -> Self:
        """Open the history, and bring its database to the newest schema.

        Args:
            url: SQLAlchemy's form: "sqlite:///…" or "postgresql+psycopg://…".
            folder: this host's data folder; it is made if it is missing.
            agent_quota: bytes that one agent may keep in the data folder; None: any number.
            shared: say which store has the large outputs and the checkpoints; None: the data folder has them.
            of_cluster: whether the sessions are those of all nodes of the database, and not of this data folder alone.

        Raises:
            SettingsError: a setting of the shared store cannot be used.
            StoreError: the database cannot be reached, read or written; or a newer Cellblock has written it; or the
                folder's files, or those of the shared store, belong to another database.
        """
        with explained(f"the history {mask(url, url)}", url=url):
            _make_private(folder)
            database = Database(url)
            try:
                home, database_id = folder_id(folder), database.migrate()  # only now: before the commit there is no id
                _refuse_foreign_files(folder, database_id)
                place = BlobPlace.shared(folder, shared, database, database_id) if shared else BlobPlace.local(folder)
            except BaseException:
                database.close()
                raise
        if of_cluster:
            home = f"{CLUSTER}{database_id[:24]}"
        history = cls(database, home, Payloads(place.outputs), agent_quota)
        history.place = place
        return history

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Open the history of a host, as its settings say. See ``open``."""
        return cls.open(
            settings.history_url,
            settings.data_path,
            agent_quota=settings.agent_quota_mb * MIB,
            shared=settings if settings.blobs_in else None,
            of_cluster=bool(settings.node_url),
        )

    def delete(self, session_id: str, owner: str | None = None) -> list[str] | None:
        """Delete a session with its outputs. See ``SessionTable.delete``.

        Raises:
            OSError: an output cannot be deleted; the next sweep tries again.
        """
        shared = self.own_payloads(session_id)
        removed = super().delete(session_id, owner)
        if removed is not None:
            self._outputs.delete(session_id, shared)
        return removed

    def sweep_outputs(self, most_bytes: int, shorten: Shorten) -> int:
        """Delete old outputs of cells, then of commands, until this data folder keeps at most ``most_bytes``.

        See ``OutputSweep.run``.
        """
        freed = self._output_sweep.run(most_bytes, shorten)
        return freed + self.sweep_commands(self.home, self.total_bytes() - most_bytes)

    def total_bytes(self) -> int:
        """Return how many bytes all agents keep in this data folder: cells, large outputs and checkpoints."""
        return self._output_sweep.total()

    def shrink(self) -> int:
        """Give the space of deleted rows back to the disk. See ``Database.shrink``."""
        return self._database.shrink()

    def close(self) -> None:
        """Wait for all calls, and close the database."""
        self._beside.shutdown(wait=True)
        self._thread.shutdown(wait=True)
        self._database.close()

    def write_as(self, node_id: str, epoch: int) -> None:
        """Write, from now on, only while this epoch of a node has its lease."""
        self._fence.node = {"node": node_id, "epoch": epoch}

    def on_refused(self, report: Callable[[NotOwnerError], object]) -> None:
        """Call ``report``, in one of the history's threads, with each write that is refused as stale."""
        self._fence.report = report

    async def run(self, method: Callable[Concatenate[Self, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a method in the history's thread. A call that has begun is finished even if the caller is cancelled.

        Raises:
            StoreError: the database cannot be reached, read or written; or the history is closed.
        """
        return await _finished(self._thread, lambda: method(self, *args, **kwargs))

    async def run_beside(self, method: Callable[Concatenate[Self, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what ``run`` does in another thread: for a method that reads or writes large outputs.

        Only other large outputs wait for it. A session has one cell at a time, so that no session fills the queue.
        """
        return await _finished(self._beside, lambda: method(self, *args, **kwargs))

    def submit(self, method: Callable[Concatenate[Self, P], T], *args: P.args, **kwargs: P.kwargs) -> None:
        """Call a method in the history's thread after the calls before it, without waiting. A failure is logged."""
        self._thread.submit(lambda: method(self, *args, **kwargs)).add_done_callback(_log_failure)


async def _finished(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    try:
        done = asyncio.get_running_loop().run_in_executor(thread, work)
    except RuntimeError as error:
        raise StoreError(
            "the history is closed: the manager has been shut down.",
            remedy="Read it before the shutdown, or with `cellblock sessions show`.",
        ) from error
    done.add_done_callback(_retrieve)  # nobody else does for a caller that was cancelled
    return await asyncio.shield(done)


def _retrieve(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()


def _log_failure(done: Future[Any]) -> None:
    error = done.exception()
    if error is not None and not isinstance(error, NotOwnerError):  # which is reported
        _log.error("the history could not be written", exc_info=error)


def _make_private(folder: Path) -> None:
    """Make a folder for its owner alone. One that everybody may write to, such as /tmp, keeps its mode."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    info = folder.stat()
    if info.st_uid == os.geteuid() and info.st_mode & 0o077 and not info.st_mode & stat.S_IWOTH:
        folder.chmod(0o700)


def folder_id(folder: Path) -> str:
    """Return the id of a data folder. Hosts that share a database know by it whose files are whose."""
    return write_once(folder / "id", secrets.token_hex(16).encode()).decode("ascii", "replace")[:32]


def _refuse_foreign_files(folder: Path, database_id: str) -> None:
    """Check that a data folder's files belong to this database. Any other one would delete them as unknown.

    Raises:
        StoreError: they belong to another database.
    """
    if write_once(folder / "database", database_id.encode()) != database_id.encode():
        raise StoreError(
            f"the files in {folder} belong to another database than CELLBLOCK_STORE_URL names.",
            remedy="Set CELLBLOCK_STORE_URL to that database, or CELLBLOCK_DATA_DIR to another folder.",
        )
