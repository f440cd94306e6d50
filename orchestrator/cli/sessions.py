"""`cellblock sessions`: lists, shows, exports and deletes the sessions of agents."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import nbformat
import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.clusterview import Cluster, cluster_settings
from orchestrator.cli.render import AsJson, console, plain, shorten, show_table
from orchestrator.errors import InvalidInputError
from orchestrator.output.printable import printable_lines
from orchestrator.sessions.membership import owner_node
from orchestrator.sessions.notebook import session_notebook
from orchestrator.sessions.owners import HostOwners, lost_sessions
from orchestrator.settings import Settings
from orchestrator.store.checkpointfiles import CheckpointFiles
from orchestrator.store.history import CellRecord, History, SessionRecord
from orchestrator.store.noderecord import NodeRecord
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
    cluster: Cluster = False,
    as_json: AsJson = False,
) -> None:
    """List sessions with their agent, state, cells and size. With --cluster: with the node that has each.

    Example: cellblock sessions list --agent agent-1
    """
    with _opened(cluster) as kept:
        found = kept.history.sessions(agent, limit)
        checkpoints = {record.session_id: kept.history.checkpoints_of(record.session_id) for record in found}
    if as_json:
        typer.echo(json.dumps([kept.as_dict(record) for record in found]))
        return
    if not found:
        console.print("no sessions")
        return
    table = Table(
        *["node"] * cluster,
        "session", "agent", "state", "cells", "size", "checkpoint", "created (UTC)", "last used (UTC)",
    )  # fmt: skip
    for record in found:
        made = checkpoints[record.session_id]
        table.add_row(
            *[escape(plain(kept.node(record) or "-"))] * cluster,
            record.session_id[:12],
            escape(plain(record.agent_id)),
            kept.state(record),
            str(record.cells),
            _size(record.bytes + sum(checkpoint.bytes for checkpoint in made)),
            f"after cell {made[0].cell}" if made else "-",
            _time(record.created_at),
            _time(record.last_used_at),
        )
    show_table(table)


@app.command()
def show(session: Id, cluster: Cluster = False, as_json: AsJson = False) -> None:
    """Show a session's cells: when each started, its outcome, and the beginning of its code and output.

    Example: cellblock sessions show 3f9a
    """
    with _opened(cluster) as kept:
        record = _find(kept.history, session)
        cells = kept.history.cells(record.session_id)
        made = kept.history.checkpoints_of(record.session_id)
    if as_json:
        typer.echo(json.dumps(_exported(kept, record, cells)))
        return
    place = f" on {plain(kept.node(record) or '')}" if kept.node(record) else ""
    said = f"session {record.session_id} of agent {plain(record.agent_id)}{place}: {kept.state(record)}"
    console.print(escape(said))
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
    cluster: Cluster = False,
) -> None:
    """Export a session as a notebook with its outputs and pictures, as JSON, or as a Python script.

    Example: cellblock sessions export 3f9a --format ipynb --out session.ipynb
    """
    with _opened(cluster) as kept:
        record = _find(kept.history, session)
        cells = kept.history.cells(record.session_id)
    if output_format is Format.ipynb:
        entries = [{"timestamp": cell.started_at, "code": cell.code, "result": cell.result} for cell in cells]
        text = nbformat.writes(session_notebook(entries, f"Session of {record.agent_id}")) + "\n"
    elif output_format is Format.json:
        text = json.dumps(_exported(kept, record, cells), indent=2) + "\n"
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
    cluster: Cluster = False,
    as_json: AsJson = False,
) -> None:
    """Delete a session with its cells, outputs and checkpoints. A session of a running process is refused.

    The id of an agent with several sessions is refused: name one of its sessions.

    Example: cellblock sessions delete 3f9a --yes
    """
    with _opened(cluster) as kept:
        history = kept.history
        record = _find(history, session)
        if not record.session_id.startswith(session) and len(several := history.sessions(session, 2)) > 1:
            raise InvalidInputError(
                f"agent {session!r} has several sessions, among them "
                f"{' and '.join(one.session_id[:12] for one in several)}.",
                remedy=f"`cellblock sessions list --agent {session}` shows all. Name the session to delete.",
            )
        if record.owner is not None and not kept.is_lost(record):
            there = kept.node(record)
            raise InvalidInputError(
                f"session {record.session_id[:12]} belongs to {f'the node {there}' if there else 'a running process'}.",
                remedy=f"End the session there first, or kill its kernel: `cellblock kill {record.session_id[:12]}"
                f"{' --cluster' * cluster}`.",
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
            kept.files.remove(checkpoint_id)
        history.sweep_payloads()
        history.shrink()
    if as_json:
        typer.echo(json.dumps({"deleted": record.session_id, "agent_id": record.agent_id, "cells": record.cells}))
    else:
        console.print(f"deleted {record.session_id}")


@dataclass(frozen=True, slots=True)
class _Kept:
    """The history that a command reads, and which of the owners in it live.

    Attributes:
        nodes: of the cluster, by their ids; None: the sessions are looked at as this host's.
    """

    history: History
    files: CheckpointFiles
    owners: HostOwners
    nodes: Mapping[str, NodeRecord] | None

    def node(self, record: SessionRecord) -> str | None:
        """Return the address of the node that has a session; None if no node of the cluster has it."""
        found = (self.nodes or {}).get((owner_node(record.owner) or ("", 0))[0])
        return None if found is None else found.address

    def is_lost(self, record: SessionRecord) -> bool:
        """Return whether a session has not ended, and its owner is gone."""
        owner = owner_node(record.owner)
        if self.nodes is None or owner is None:
            return bool(lost_sessions([record], self.owners))
        node = self.nodes.get(owner[0])
        return record.state != "ended" and (node is None or node.is_over or owner[1] < node.epoch)

    def state(self, record: SessionRecord) -> str:
        """Return what a table says of a session's state."""
        if record.state == "ended":
            return f"ended ({plain(record.end_reason or 'unknown')})"
        if record.state == "live" and self.is_lost(record):
            return "lost its process" if self.nodes is None else "lost its node"
        return record.state

    def as_dict(self, record: SessionRecord) -> dict[str, Any]:
        """Return a session as JSON, with its node in a cluster."""
        return {**asdict(record), **({} if self.nodes is None else {"node": self.node(record)})}


@contextlib.contextmanager
def _opened(cluster: bool) -> Iterator[_Kept]:
    settings = cluster_settings() if cluster else Settings.load()
    history = History.of(settings)
    try:
        nodes = {node.node_id: node for node in history.nodes()} if cluster else None
        owners = HostOwners(folders=(settings.state_path, settings.data_path))
        yield _Kept(history, history.place.checkpoint_files(), owners, nodes)
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


def _exported(kept: _Kept, record: SessionRecord, cells: list[CellRecord]) -> dict[str, Any]:
    return {**kept.as_dict(record), "cells": [asdict(cell) for cell in cells]}


def _said(cell: CellRecord) -> str:
    error = cell.result.get("error")
    shown = str(cell.result.get("stdout") or cell.result.get("result") or "")
    if isinstance(error, dict):
        mark = f"{shown} " if "outputs_deleted" in cell.result else ""
        return f"{mark}{error.get('ename')}: {error.get('evalue')}"
    return shown


def _one_line(text: str) -> str:
    return shorten(" ".join(plain(text).split()), _LONGEST)


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
