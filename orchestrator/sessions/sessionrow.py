"""SessionRow: one session's rows in the store. Only ``KernelSession`` uses it: no other module writes them.

A session without a store, such as one in a test, has no rows: every method then does nothing.

Every write carries this process's claim on the session. Once another process has taken the session over, those that a
caller waits for raise NotOwnerError, and the others are reported by the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.errors import KernelPoolExhaustedError, NotOwnerError, StoreError
from orchestrator.kernel.kernel import Kernel
from orchestrator.outcome import Outcome
from orchestrator.output.commandresult import CommandResult
from orchestrator.store.history import CheckpointRecord, Claim, CommandRecord, History
from orchestrator.store.payloads import is_large
from orchestrator.store.places import Place

_log = logging.getLogger(__name__)
NEVER_RAN: dict[str, Any] = {"status": "error", "outcome": Outcome.CANCELLED, "outputs": [], "error": None}


class SessionRow:
    """The row of one session, and the rows of its cells.

    Args:
        owner: this process's name in the store.

    Attributes:
        place: the place of a cluster's quota that the session takes when it gets its first kernel, or wakes.
    """

    place: Place | None = None

    def __init__(self, store: History | None, session_id: str, owner: str) -> None:
        self._store = store
        self._session_id = session_id
        self._owner = owner
        self._claim = Claim(session_id, 0)
        self._unwritten: dict[int, dict[str, Any]] = {}  # results that the store may not have yet, by cell
        self._unkept_commands = 0  # of a session without a store

    async def add(self, agent_id: str, kernel: Kernel) -> bool:
        """Add the row of a session that has a kernel. After a failure the row, if it exists, is ended.

        Returns:
            False when another process was quicker to begin a session of the agent.

        Raises:
            KernelPoolExhaustedError: there is no place; nothing is written.
            StoreError: the row cannot be written.
        """
        if self._store is None:
            return True
        self._claim = Claim(self._session_id, 1)  # as ``add_session`` will say
        try:
            claim = await self._store.run(
                History.add_session,
                self._session_id,
                agent_id,
                owner=self._owner,
                kernel_id=kernel.kernel_id,
                runtime=kernel.runtime,
                place=self.place,
            )
        except KernelPoolExhaustedError:
            raise
        except BaseException:  # a cancelled caller does not know whether the row was written
            self._store.submit(History.session_ends, self._claim, Outcome.NEVER_STARTED)
            raise
        return claim is not None

    async def add_forks(self, forks: Sequence[tuple[str, CheckpointRecord]], kernel: Kernel) -> None:
        """Add the rows of sleeping forks, all or none, each with its agent and its checkpoint.

        Raises:
            StoreError: the rows cannot be written.
        """
        if self._store is not None:
            names = {"kernel_id": kernel.kernel_id, "runtime": kernel.runtime}
            await self._store.run(History.add_forks, self._claim, forks, **names)

    async def take_over(self, owner: str | None) -> bool:
        """Make this process the owner in place of ``owner``. Returns False when another process was quicker.

        Raises:
            KernelPoolExhaustedError: the session slept, and there is no place for it; nothing is changed.
            StoreError: the row cannot be written.
        """
        if self._store is None:
            return True
        place = self.place if owner is None else None
        try:
            claim = await self._store.run(History.take_ownership, self._session_id, owner, self._owner, place=place)
        except asyncio.CancelledError:  # the row is changed all the same: undo it, or nobody could wake the session
            self._store.submit(History.take_ownership, self._session_id, self._owner, owner)
            raise
        self._claim = claim or self._claim
        return claim is not None

    async def lives(self, kernel: Kernel) -> None:
        """Write that the session has this kernel.

        Raises:
            StoreError: the row cannot be written.
        """
        if self._store is not None:
            await self._store.run(History.session_lives, self._claim, **self._names(kernel))

    def lives_still(self, kernel: Kernel) -> None:
        """Write, in the background, that the session still has this kernel."""
        if self._store is not None:
            self._store.submit(History.session_lives, self._claim, **self._names(kernel))

    def sleeps_still(self) -> None:
        """Write, in the background, that the session sleeps as before."""
        if self._store is not None:
            self._store.submit(History.session_sleeps, self._claim)

    async def sleeps(self) -> None:
        """Write that the session has no kernel and no owner. The store keeps a write that fails for the next one."""
        if self._store is not None:
            with self._owed():
                await self._store.run(History.session_sleeps, self._claim)

    async def ends(self, reason: str) -> bool:
        """Write that the session is over. The store keeps a write that fails for the next one.

        Returns:
            Whether it is written.
        """
        if self._store is not None:
            with self._owed():
                await self._store.run(History.session_ends, self._claim, reason)
                return True
        return False

    async def add_checkpoint(self, record: CheckpointRecord) -> list[str]:
        """Add the row of a checkpoint. Returns the ids of those that it replaces; the caller removes the files.

        Raises:
            StoreError: the row cannot be written.
        """
        return [] if self._store is None else await self._store.run(History.add_checkpoint, self._claim, record)

    async def drop_checkpoints(self) -> list[str]:
        """Forget the checkpoints that nobody asked for. Returns their ids; the caller removes the files."""
        dropped: list[str] = []
        if self._store is not None:
            with self._owed():
                dropped = await self._store.run(History.drop_checkpoints, self._claim)
        return dropped

    async def begin_cell(self, number: int, code: str, kernel: Kernel) -> None:
        """Write that a cell is about to run. When the caller is cancelled, the cell's row says that it never ran.

        Raises:
            StoreError: the row cannot be written.
        """
        if self._store is None:
            return
        try:
            with _undone():
                await self._store.run(History.begin_cell, self._claim, number, code, kernel.kernel_id)
        except asyncio.CancelledError:  # the row is written all the same
            self._unwritten[number] = NEVER_RAN
            self._store.submit(History.end_cell, self._claim, number, NEVER_RAN)
            raise

    async def end_cell(self, number: int, result: dict[str, Any]) -> None:
        """Write a cell's result. The store keeps a write that fails for the next one.

        Raises:
            StoreError: the result is not written yet.
        """
        if self._store is not None:
            try:
                run = self._store.run_beside if is_large(result) else self._store.run
                await run(History.end_cell, self._claim, number, result)
            except BaseException:
                self._unwritten[number] = result
                raise

    async def end_lost_cell(self, number: int, result: dict[str, Any]) -> None:
        """Do what ``end_cell`` does, and log a failure: another error is on its way to the caller."""
        with self._owed():
            await self.end_cell(number, result)

    async def end_running_cells(self, result: dict[str, Any]) -> bool:
        """Give the cells that ran when their process died this result. Returns whether there were any.

        The store keeps a write that fails for the next one.

        Raises:
            StoreError: the rows cannot be read.
        """
        if self._store is None or not await self._store.run(History.has_running_cells, self._session_id):
            return False
        with self._owed():
            await self._store.run(History.end_running_cells, self._claim, result)
        return True

    async def begin_command(self, command: Sequence[str], kernel: Kernel, *, shell: bool) -> int:
        """Write that a command is about to run. Returns its number in the session.

        Raises:
            StoreError: the row cannot be written.
        """
        if self._store is None:
            self._unkept_commands += 1
            return self._unkept_commands
        of = self._claim, kernel.kernel_id, command
        with _undone():
            return await self._store.run(History.begin_command, *of, shell=shell)

    def end_command(self, number: int, result: CommandResult) -> None:
        """Write a command's result, in the background. The store keeps a write that fails for the next one."""
        if self._store is not None:
            self._store.submit(History.end_command, self._claim, number, result)

    async def end_running_commands(self, outcome: str) -> int:
        """Give the commands that ran when their process died this outcome. Returns how many there were.

        Raises:
            StoreError: the rows cannot be read.
        """
        if self._store is None:
            return 0
        return await self._store.run(History.end_running_commands, self._claim, outcome)

    async def read_commands(self) -> list[CommandRecord]:
        """Return the session's commands.

        Raises:
            StoreError: the rows cannot be read.
        """
        return [] if self._store is None else await self._store.run(History.commands, self._session_id)

    async def read_history(self) -> list[dict[str, Any]]:
        """Return the cells in the form of ``KernelSession.execution_history``.

        Raises:
            StoreError: the rows cannot be read.
        """
        if self._store is None:
            return []
        await self._store.run(_after_earlier_writes)
        return await self._store.run_beside(_history_of, self._session_id, self._unwritten)

    def read_history_now(self) -> list[dict[str, Any]]:
        """Do what ``read_history`` does, and block."""
        return [] if self._store is None else _history_of(self._store, self._session_id, self._unwritten)

    def _names(self, kernel: Kernel) -> dict[str, str]:
        return {"owner": self._owner, "kernel_id": kernel.kernel_id, "runtime": kernel.runtime}

    @contextlib.contextmanager
    def _owed(self) -> Iterator[None]:
        """Log a write that failed. The store repeats it before its next write; one that it refused is reported."""
        try:
            yield
        except NotOwnerError:
            pass
        except StoreError as error:
            _log.warning("session %s is not up to date in the history yet: %s", self._session_id, error)


def _after_earlier_writes(_store: History) -> None:
    """Do nothing, in the store's thread, after the writes that wait there."""


def _history_of(store: History, session_id: str, unwritten: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    entries = []
    for cell in store.cells(session_id):
        if cell.outcome != "running":
            unwritten.pop(cell.number, None)
        result = unwritten.get(cell.number, cell.result)
        entries.append({"timestamp": cell.started_at, "code": cell.code, "result": result})
    return entries


@contextlib.contextmanager
def _undone() -> Iterator[None]:
    """Say of a refusal by the fence that nothing was done yet."""
    try:
        yield
    except NotOwnerError as error:
        error.undone = True
        raise
