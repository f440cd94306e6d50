"""`cellblock sessions`: lists, shows, exports and deletes the sessions of agents."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import nbformat
import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.render import AsJson, console, plain, shorten, show_table
from orchestrator.errors import InvalidInputError
from orchestrator.output.printable import printable_lines
from orchestrator.sessions.notebook import session_notebook
from orchestrator.sessions.owners import HostOwners, lost_sessions
from orchestrator.settings import Settings
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import CellRecord, History, SessionRecord
from orchestrator.store.wholefile import save_whole

app = typer.Typer(
    help="List, show, export and delete the sessions of agents.\n\nExample: cellblock sessions export 3f9a",
    no_args_is_help=True,
)
_LONGEST = 80  # characters of code and of output in a table row

Id = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="The session's id, its beginning, or an agent's id: the session that it used last."
    ),
]


class Format(StrEnum):
    """The format of an exported session."""

    ipynb = "ipynb"
    json = "json"
    py = "py"


@app.command(name="list")
def list_sessions(
    agent: Annotated[str | None, typer.Option(help="Only sessions of this agent.")] = None,
    limit: Annotated[
        int, typer.Option("-n", "--limit", min=1, help="The number of sessions; the most recently used come first.")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List sessions with their agent, state, cells and size.

    Example: cellblock sessions list --agent agent-1
    """
    with _history() as (history, _files):
        found = history.sessions(agent, limit)
        checkpoints = {record.session_id: history.checkpoints_of(record.session_id) for record in found}
    if as_json:
        typer.echo(json.dumps([asdict(record) for record in found]))
        return
    if not found:
        console.print("no sessions")
        return
    table = Table("session", "agent", "state", "cells", "size", "checkpoint", "created (UTC)", "last used (UTC)")
    for record in found:
        made = checkpoints[record.session_id]
        table.add_row(
            record.session_id[:12],
            escape(plain(record.agent_id)),
            _state(record),
            str(record.cells),
            _size(record.bytes + sum(checkpoint.bytes for checkpoint in made)),
            f"after cell {made[0].cell}" if made else "-",
            _time(record.created_at),
            _time(record.last_used_at),
        )
    show_table(table)


@app.command()
def show(session: Id, as_json: AsJson = False) -> None:
    """Show a session's cells: when each started, its outcome, and the beginning of its code and output.

    Example: cellblock sessions show 3f9a
    """
    with _history() as (history, _files):
        record = _find(history, session)
        cells = history.cells(record.session_id)
        made = history.checkpoints_of(record.session_id)
    if as_json:
        typer.echo(json.dumps(_exported(record, cells)))
        return
    console.print(f"session {record.session_id} of agent {escape(plain(record.agent_id))}: {_state(record)}")
    if record.parent_id:
        console.print(f"forked from {record.parent_id}")
    for checkpoint in made:
        lost = f", {len(checkpoint.lost)} variables not saved" if checkpoint.lost else ""
        console.print(
            f"checkpoint {checkpoint.checkpoint_id} after cell {checkpoint.cell}, {_size(checkpoint.bytes)}{lost}"
        )
    table = Table("cell", "started (UTC)", "outcome", "code", "output")
    for cell in cells:
        said = _one_line(_said(cell))
        table.add_row(
            str(cell.number), _time(cell.started_at), cell.outcome, escape(_one_line(cell.code)), escape(said)
        )
    show_table(table)


@app.command()
def export(
    session: Id,
    output_format: Annotated[
        Format, typer.Option("--format", help="A notebook, JSON, or a Python script with the code.")
    ] = (Format.ipynb),
    out: Annotated[Path | None, typer.Option("--out", help="The file to write. Default: standard output.")] = None,
) -> None:
    """Export a session as a notebook with its outputs and pictures, as JSON, or as a Python script.

    Example: cellblock sessions export 3f9a --format ipynb --out session.ipynb
    """
    with _history() as (history, _files):
        record = _find(history, session)
        cells = history.cells(record.session_id)
    if output_format is Format.ipynb:
        entries = [{"timestamp": cell.started_at, "code": cell.code, "result": cell.result} for cell in cells]
        text = nbformat.writes(session_notebook(entries, f"Session of {record.agent_id}")) + "\n"
    elif output_format is Format.json:
        text = json.dumps(_exported(record, cells), indent=2) + "\n"
    else:
        text = "\n".join(f"# %% cell {cell.number}: {cell.outcome}\n{cell.code.rstrip()}\n" for cell in cells)
    if out is None:  # a terminal would obey what the session's code and outputs contain
        typer.echo(printable_lines(text) if sys.stdout.isatty() else text, nl=False)
        return
    save_whole(out, text)
    console.print(f"{escape(str(out))}: {len(cells)} cells")


@app.command()
def delete(
    session: Id,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a session with its cells, outputs and checkpoints. A session of a running process is refused.

    The id of an agent with several sessions is refused: name one of its sessions.

    Example: cellblock sessions delete 3f9a --yes
    """
    with _history() as (history, files):
        record = _find(history, session)
        if not record.session_id.startswith(session) and len(several := history.sessions(session, 2)) > 1:
            raise InvalidInputError(
                f"agent {session!r} has several sessions, among them "
                f"{' and '.join(one.session_id[:12] for one in several)}.",
                remedy=f"`cellblock sessions list --agent {session}` shows all. Name the session to delete.",
            )
        if record.owner is not None and not lost_sessions([record], HostOwners(folders=_folders())):
            raise InvalidInputError(
                f"session {record.session_id[:12]} belongs to a running process.",
                remedy=f"End the session there first, or kill its kernel: `cellblock kill {record.session_id[:12]}`.",
            )
        if not yes and not typer.confirm(f"Delete {record.cells} cells of agent {plain(record.agent_id)}?"):
            raise typer.Exit(1)
        removed = history.delete(record.session_id, record.owner)
        if removed is None:
            raise InvalidInputError(
                f"session {record.session_id[:12]} belongs to another host, or its agent has just returned; "
                "nothing was deleted."
            )
        for checkpoint_id in removed:
            files.remove(checkpoint_id)
        history.sweep_payloads()
        history.shrink()
    if as_json:
        typer.echo(json.dumps({"deleted": record.session_id, "agent_id": record.agent_id, "cells": record.cells}))
    else:
        console.print(f"deleted {record.session_id}")


@contextlib.contextmanager
def _history() -> Iterator[tuple[History, CheckpointFiles]]:
    history = History.of(Settings.load())
    try:
        yield history, history.place.checkpoint_files()
    finally:
        history.close()


def _find(history: History, prefix: str) -> SessionRecord:
    found = history.find(prefix) if prefix else []
    if any(one.session_id == prefix for one in found) or len(found) == 1:
        return found[0]
    if prefix and (newest := history.sessions(prefix, 1)):
        return newest[0]
    if not found:
        raise InvalidInputError(
            f"there is no session {prefix!r}, and no agent of that id has one.",
            remedy="`cellblock sessions list` shows all sessions.",
        )
    raise InvalidInputError(
        f"at least {len(found)} sessions begin with {prefix!r}: "
        f"{', '.join(one.session_id[:12] for one in found[:3])}, …"
    )


def _exported(record: SessionRecord, cells: list[CellRecord]) -> dict[str, Any]:
    return {**asdict(record), "cells": [asdict(cell) for cell in cells]}


def _said(cell: CellRecord) -> str:
    error = cell.result.get("error")
    shown = str(cell.result.get("stdout") or cell.result.get("result") or "")
    if isinstance(error, dict):
        mark = f"{shown} " if "outputs_deleted" in cell.result else ""
        return f"{mark}{error.get('ename')}: {error.get('evalue')}"
    return shown


def _one_line(text: str) -> str:
    return shorten(" ".join(plain(text).split()), _LONGEST)


def _state(record: SessionRecord) -> str:
    if record.state == "ended":
        return f"ended ({plain(record.end_reason or 'unknown')})"
    if record.state == "live" and lost_sessions([record], HostOwners(folders=_folders())):
        return "lost its process"
    return record.state


def _folders() -> tuple[Path, Path]:
    settings = Settings.load()
    return settings.state_path, settings.data_path


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
