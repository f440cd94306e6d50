"""The history's commands. Only ``History`` uses this class.

A command's result is kept with the beginning and the end of what it wrote: at most 64 KiB of each stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, text, update

from orchestrator.output.commandresult import CommandResult, shortened
from orchestrator.store.agentusage import AgentUsage
from orchestrator.store.database import Database
from orchestrator.store.fence import Claim, Fence
from orchestrator.store.prepared import Prepared
from orchestrator.store.records import CommandRecord
from orchestrator.store.schema import LARGE_COMMANDS, commands, sessions

KEPT = 64 * 1024  # bytes of each stream
_BATCH = 20  # commands that one transaction changes: a few milliseconds
_SHORT = 200  # characters of a stream that retention leaves
_LEFT = 2000  # characters of a command, and of a result, that retention leaves at most
_DELETED = "[deleted by retention]"
_OF = commands.c.session_id == bindparam("of")
_LAST = select(func.coalesce(func.max(commands.c.number), 0)).where(_OF)
_BEGIN = insert(commands).values(
    {name: bindparam(name) for name in ("session_id", "number", "kernel_id", "command", "shell", "started_at", "bytes")}
    | {"outcome": "running", "result": "{}"}
)
_END = (
    update(commands)
    .where(_OF, commands.c.number == bindparam("command_number"), commands.c.outcome == bindparam("before"))
    .values(outcome=bindparam("how"), result=bindparam("what"), ended_at=bindparam("at"), bytes=bindparam("size"))
)
_USE = (
    update(sessions)
    .where(sessions.c.session_id == bindparam("of"))
    .values(last_used_at=bindparam("at"), bytes=sessions.c.bytes + bindparam("more"))
)


class CommandTable:
    """The commands of one database. All methods block, and raise StoreError where the database fails."""

    def __init__(self, database: Database, usage: AgentUsage, fence: Fence) -> None:
        self._database = database
        self._usage = usage
        self._fence = fence
        self._last_command = Prepared(_LAST, database.dialect)
        self._begin_command = Prepared(_BEGIN, database.dialect)
        self._end_command = Prepared(_END, database.dialect)
        self._use_by_command = Prepared(_USE, database.dialect)

    def begin_command(self, claim: Claim, kernel_id: str, command: Sequence[str], *, shell: bool) -> int:
        """Record that a command is about to run. Returns its number in the session.

        Raises:
            NotOwnerError: another process has owned the session since; nothing is recorded.
            QuotaExceededError: the agent keeps as much as it may; nothing is recorded.
        """
        session_id, arguments = claim.session_id, json.dumps(command)
        begun = {
            "session_id": session_id,
            "kernel_id": kernel_id,
            "command": arguments,
            "shell": shell,
            "started_at": time.time(),
            "bytes": len(arguments),
        }

        def begin(connection: Connection) -> int:
            self._fence.check(connection, claim, "the command has not run")
            self._usage.check(connection, session_id, "the command has not run", len(arguments))
            row = self._last_command.on(connection, {"of": session_id})
            number = 1 if row is None else int(row[0]) + 1
            self._begin_command.on(connection, {**begun, "number": number})
            return number

        return self._database.write(begin)

    def end_command(self, claim: Claim, number: int, result: CommandResult) -> None:
        """Record a command's result. No effect if it has one already, or the session was deleted.

        Raises:
            NotOwnerError: another process has owned the session since; the result is not written, now or later.
            StoreError: the result cannot be written now; it is written before the next write that succeeds.
        """
        kept = json.dumps(shortened(result, KEPT).as_dict())
        self._close_command(claim, number, result.outcome.value, kept, len(json.dumps(result.command)))

    def end_running_commands(self, claim: Claim, outcome: str) -> int:
        """Record an outcome for the commands that ran when their process ended. Returns how many.

        A write that fails is made up for.

        Raises:
            NotOwnerError: another process has owned the session since.
        """
        query = select(commands.c.number, commands.c.command)
        running = query.where(commands.c.session_id == claim.session_id, commands.c.outcome == "running")
        with self._database.reading() as connection:
            found = connection.execute(running).all()
        for number, command in found:
            self._close_command(claim, number, outcome, "{}", len(command))
        return len(found)

    def commands(self, session_id: str) -> list[CommandRecord]:
        """Return a session's commands, in the order of their numbers."""
        query = select(commands).where(commands.c.session_id == session_id).order_by(commands.c.number)
        with self._database.reading() as connection:
            return [
                CommandRecord(
                    row.number,
                    row.kernel_id,
                    tuple(json.loads(row.command)),
                    row.shell,
                    row.started_at,
                    row.ended_at,
                    row.outcome,
                    json.loads(row.result),
                )
                for row in connection.execute(query)
            ]

    def _close_command(self, claim: Claim, number: int, outcome: str, kept: str, began: int) -> None:
        session_id, now, size = claim.session_id, time.time(), began + len(kept)
        ended = {
            "of": session_id,
            "command_number": number,
            "before": "running",
            "how": outcome,
            "what": kept,
            "at": now,
            "size": size,
        }

        def close(connection: Connection) -> None:
            self._fence.check(connection, claim, "the command's result is not kept")
            if self._end_command.changed(connection, ended):
                self._use_by_command.on(connection, {"of": session_id, "at": now, "more": size})
                self._usage.add(connection, session_id, size)

        self._database.write_eventually(close)

    def sweep_commands(self, home: str, excess: int) -> int:
        """Delete what the oldest commands of a data folder wrote, until ``excess`` bytes are freed. Returns how many.

        The commands, their outcomes and their exit codes stay.
        """
        freed, found = 0, True
        mine = (sessions.c.session_id == commands.c.session_id) & (sessions.c.home == home)
        query = select(commands).join(sessions, mine).where(text(LARGE_COMMANDS), commands.c.outcome != "running")
        while freed < excess and found:
            began = time.monotonic()
            with self._database.writing() as connection:
                rows = connection.execute(query.order_by(commands.c.started_at).limit(_BATCH)).all()
                found = bool(rows)
                for row in rows:
                    freed += self._sweep_command(connection, row)
            time.sleep(time.monotonic() - began)  # others write meanwhile
        return freed

    def _sweep_command(self, connection: Connection, row: Row[Any]) -> int:
        command, result = row.command, json.loads(row.result)
        for stream in ("stdout", "stderr"):
            if result.pop(f"{stream}_base64", None) or len(result.get(stream, "")) > _SHORT:
                result[stream] = _DELETED
        if len(command) > _LEFT:
            command = json.dumps([f"[a command of {len(command)} bytes, deleted by retention]"])
        kept = json.dumps(result)
        if len(kept) > _LEFT:
            kept = "{}"
        size = len(command) + len(kept)
        one = (commands.c.session_id == row.session_id) & (commands.c.number == row.number)
        connection.execute(update(commands).where(one).values(command=command, result=kept, bytes=size))
        freed: int = row.bytes - size
        of = sessions.c.session_id == row.session_id
        connection.execute(update(sessions).where(of).values(bytes=sessions.c.bytes - freed))
        self._usage.add(connection, row.session_id, -freed)
        return freed
