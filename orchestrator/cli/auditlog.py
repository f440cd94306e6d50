"""`cellblock audit`: check the audit log's chain, follow it, search it."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.render import console, errors, plain
from orchestrator.errors import InvalidInputError
from orchestrator.settings import Settings
from orchestrator.store.auditchain import Mark, read, segments
from orchestrator.store.auditchain import verify as verify_chain

app = typer.Typer(
    help="Check, follow and search the audit log.\n\nExample: cellblock audit search --agent agent-1 --outcome oom",
    no_args_is_help=True,
)
_POLL = 0.5  # seconds between two looks for new entries
_LONGEST = 100  # characters of the details in a table
_SHOWN_ELSEWHERE = ("seq", "time", "event", "agent", "kernel", "instance", "prev", "hash", "caller", "session")

File = Annotated[Path | None, typer.Option("--log", help="The log; default: CELLBLOCK_AUDIT_LOG.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print entries as they are, a JSON line each.")]


@app.command()
def verify(
    log: File = None,
    head: Annotated[str, typer.Option(help="NUMBER:HASH of a head of earlier, which must be in the chain.")] = "",
) -> None:
    """Check that no line was altered, removed, moved or cut off, and name the first that was.

    Prints the head of the chain: note it down elsewhere, and pass it the next time, and a log that was written anew
    will not pass. Exit status: 0 when the chain is whole, 1 when it is not.

    Example: cellblock audit verify --head 1841:5c1d…
    """
    path = _path(log)
    try:
        verdict = verify_chain(path, _mark(head))
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.") from error
    for note in verdict.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    if verdict.fault is not None:
        fault = verdict.fault
        console.print(f"[bold red]{fault.kind}:[/] {escape(str(fault.path))}, line {fault.line}: {escape(fault.said)}.")
        console.print(f"{verdict.entries:,} entries before it are sound.")
        raise typer.Exit(1)
    console.print(f"[green]whole:[/] {verdict.entries:,} entries, {verdict.first} to {verdict.last}.")
    console.print(f"head: {verdict.head}", soft_wrap=True)


@app.command()
def tail(
    log: File = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many entries.")] = 20,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with entries as they come.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the newest entries.

    Example: cellblock audit tail -f
    """
    path = _path(log)
    size = _size(path)  # before it is read: what comes in between is not to be missed
    newest = deque(_entries(path), maxlen=max(1, lines))
    _print(list(newest) if lines else [], as_json)
    last = _number(newest[-1]) if newest else 0
    while follow:
        time.sleep(_POLL)
        if (grown := _size(path)) == size:
            continue
        size = grown
        fresh = [entry for entry in _entries(path) if _number(entry) > last]
        if fresh:
            last = _number(fresh[-1])
            _print(fresh, as_json)


@app.command()
def search(
    log: File = None,
    agent: Annotated[str, typer.Option(help="Of this agent.")] = "",
    kernel: Annotated[str, typer.Option(help="Of the kernel whose id begins so.")] = "",
    event: Annotated[str, typer.Option(help="Of this event, or group of events: cell.ended, cell.")] = "",
    outcome: Annotated[str, typer.Option(help="Cells that ended so: oom, timeout, …")] = "",
    code: Annotated[str, typer.Option(help="Cells whose code has this SHA-256, or a file's with it.")] = "",
    text: Annotated[str, typer.Option(help="Entries that have this anywhere.")] = "",
    since: Annotated[str, typer.Option(help="From this time on: 2026-01-31, or 2026-01-31T12:00 (UTC).")] = "",
    until: Annotated[str, typer.Option(help="Up to this time.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print the entries that match all that is asked for. Exit status: 0 when there are any, 1 when there are none.

    Example: cellblock audit search --event cell.ended --outcome oom --since 2026-01-31
    """

    def matches(entry: dict[str, Any]) -> bool:
        when = str(entry.get("time", ""))
        return (
            (not agent or entry.get("agent") == agent)
            and str(entry.get("kernel", "")).startswith(kernel)
            and str(entry.get("event", "")).startswith(event)
            and (not outcome or entry.get("outcome") == outcome)
            and (not code or code in (entry.get("code_sha256"), entry.get("sha256")))
            and (not text or text in json.dumps(entry, ensure_ascii=False))
            and (not since or when >= since)
            and (not until or when[: len(until)] <= until)
        )

    found = [entry for entry in _entries(_path(log)) if matches(entry)]
    _print(found, as_json)
    if not found:
        errors.print("nothing found")
        raise typer.Exit(1)


def _path(log: Path | None) -> Path:
    path = log or Settings.load().audit_path
    if path is None:
        raise InvalidInputError("there is no audit log: CELLBLOCK_AUDIT_LOG is off.", remedy="Name one with --log.")
    path = path.absolute()
    if not segments(path):
        raise InvalidInputError(f"there is no audit log {path}.", remedy="It begins with the first kernel.")
    return path


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from read(path)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.") from error


def _size(path: Path) -> int:
    return sum(segment.stat().st_size for segment in segments(path))


def _mark(head: str) -> Mark | None:
    if not head:
        return None
    number, _, digest = head.partition(":")
    if not number.isdecimal() or len(digest) != 64:
        raise InvalidInputError("--head takes NUMBER:HASH, as `cellblock audit verify` prints it.")
    return Mark(int(number), digest)


def _number(entry: dict[str, Any]) -> int:
    number = entry.get("seq")
    return number if isinstance(number, int) else 0


def _print(entries: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        for entry in entries:
            typer.echo(json.dumps(entry))
        return
    if not entries:
        return
    table = Table("entry", "time (UTC)", "event", "agent", "kernel", "details")
    for column in table.columns[:3]:
        column.no_wrap = True
    for entry in entries:
        details = {key: value for key, value in entry.items() if key not in _SHOWN_ELSEWHERE}
        said = ", ".join(f"{key}={value}" for key, value in _flat(details) if value not in (None, [], {}))
        cells = (
            str(_number(entry)),
            str(entry.get("time", ""))[:19].replace("T", " "),
            str(entry.get("event", "")),
            str(entry.get("agent", "")),
            str(entry.get("kernel", ""))[:12],
            said if len(said) <= _LONGEST else said[:_LONGEST] + "…",
        )
        table.add_row(*(escape(plain(cell)) for cell in cells))
    console.print(table)


def _flat(details: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in details.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value
