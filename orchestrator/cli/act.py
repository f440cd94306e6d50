"""`cellblock interrupt`, `cellblock hibernate` and `cellblock kill`: act on one running kernel."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.markup import escape

from orchestrator.cli.clusterview import Cluster, seen
from orchestrator.cli.kernelrows import ACT, DONE, Row, find_kernel, refusal
from orchestrator.cli.render import AsJson, console, plain, run_async, show_json
from orchestrator.errors import InvalidInputError

Id = Annotated[str, typer.Argument(metavar="ID", help="The id of a kernel, session or agent, or its beginning.")]


def interrupt(name: Id, cluster: Cluster = False, as_json: AsJson = False) -> None:
    """Interrupt the running cell of a kernel, as Ctrl-C does. Its variables stay. The audit log records who did it.

    Exit status: 0 if a cell was interrupted, 1 if none was running or ID does not name one kernel.

    Example: cellblock interrupt agent-1
    """
    _do("interrupt", name, cluster, as_json)


def hibernate(name: Id, cluster: Cluster = False, as_json: AsJson = False) -> None:
    """Write a session's state to a checkpoint and give up its kernel. The session's next use wakes it.

    Exit status: 0 if the session sleeps; 1 if it is in use, if its state cannot be captured, or if ID does not name one
    kernel.

    Example: cellblock hibernate agent-1
    """
    _do("hibernate", name, cluster, as_json)


def kill(name: Id, cluster: Cluster = False, as_json: AsJson = False) -> None:
    """Kill a kernel and end its session. Its variables are lost. The audit log records who did it.

    Exit status: 0 if the kernel was killed, 1 if it had ended or ID does not name one kernel.

    Example: cellblock kill 3f9a
    """
    _do("kill", name, cluster, as_json)


def _do(action: str, name: str, cluster: bool, as_json: bool) -> None:
    _show(action, *run_async(_act(action, name, cluster)), as_json, cluster)


async def _act(action: str, name: str, cluster: bool) -> tuple[Row, dict[str, Any]]:
    row = find_kernel(await seen(cluster), name)
    reply = await row.act(action)
    if reply is None:
        raise InvalidInputError(
            f"{row.control} did not answer within {ACT:g} s.",
            remedy="It has ended or hangs: `cellblock ps` shows whether it answers again.",
        )
    return row, reply


def _show(action: str, row: Row, reply: dict[str, Any], as_json: bool, cluster: bool) -> None:
    done = DONE[action]
    succeeded = reply.get(done) is True
    said = "" if succeeded else refusal(action, reply)
    if as_json:
        named = {"kernel_id": row.kernel_id, "session": row.kernel.get("session"), "agent": row.agent or None}
        place = {"node" if cluster else "user": row.control.place}
        show_json({**named, **place, done: succeeded, "fault": said})
    elif succeeded:
        console.print(f"{done} kernel {escape(plain(row.kernel_id[:12]))} of agent {escape(plain(row.agent or '-'))}")
    if succeeded:
        return
    if not as_json:
        raise InvalidInputError(f"kernel {row.kernel_id[:12]} of agent {row.agent or '-'}: {said.rstrip('.')}.")
    raise typer.Exit(1)
