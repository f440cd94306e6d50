"""`cellblock interrupt` and `cellblock kill`: act on one running kernel of this host."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from orchestrator.cli.kernelrows import ACT, Row, find_kernel, look, refusal
from orchestrator.cli.render import AsJson, console, plain, run_async, show_json
from orchestrator.errors import InvalidInputError
from orchestrator.settings import Settings

Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a kernel, session or agent, or its beginning.")]


def interrupt(name: Id, as_json: AsJson = False) -> None:
    """Interrupt the running cell of a kernel, as Ctrl-C does. Its variables stay. The audit log records who did it.

    Exit status: 0 if a cell was interrupted, 1 if none was running or ID does not name one kernel.

    Example: cellblock interrupt agent-1
    """
    _show("interrupt", "interrupted", *run_async(_act("interrupt", name)), as_json)


def kill(name: Id, as_json: AsJson = False) -> None:
    """Kill a kernel and end its session. Its variables are lost. The audit log records who did it.

    Exit status: 0 if the kernel was killed, 1 if it had ended or ID does not name one kernel.

    Example: cellblock kill 3f9a
    """
    _show("kill", "killed", *run_async(_act("kill", name)), as_json)


async def _act(action: str, name: str) -> tuple[Row, dict[str, Any]]:
    row = find_kernel(await look(Settings.load()), name)
    reply = await row.control.ask({"do": action, "kernel": row.kernel_id}, ACT)
    if reply is None:
        raise InvalidInputError(
            f"instance {row.control.instance} of user {row.user} did not answer within {ACT:g} s.",
            remedy="It has ended or hangs: `cellblock ps` shows whether it answers again.",
        )
    return row, reply


def _show(action: str, done: str, row: Row, reply: dict[str, Any], as_json: bool) -> None:
    succeeded = reply.get(done) is True
    said = "" if succeeded else refusal(action, reply)
    if as_json:
        named = {"kernel_id": row.kernel_id, "session": row.kernel.get("session"), "agent": row.agent or None}
        show_json({**named, "user": row.user, done: succeeded, "fault": said})
    elif succeeded:
        console.print(f"{done} kernel {escape(plain(row.kernel_id[:12]))} of agent {escape(plain(row.agent or '-'))}")
    if succeeded:
        return
    if not as_json:
        raise InvalidInputError(f"kernel {row.kernel_id[:12]} of agent {row.agent or '-'}: {said.rstrip('.')}.")
    raise typer.Exit(1)
