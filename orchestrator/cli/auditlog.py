"""`cellblock audit`: verifies, follows and searches the audit log."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from orchestrator.cli.auditentries import number_of, show_entries
from orchestrator.cli.auditnodes import tail_nodes, verify_nodes
from orchestrator.cli.clusterview import Cluster
from orchestrator.cli.moments import ACCEPTED, moments, time_of
from orchestrator.cli.render import AsJson, console, errors, plain, show_json
from orchestrator.errors import InvalidInputError
from orchestrator.outcome import Outcome
from orchestrator.settings import Settings
from orchestrator.store.auditchain import Mark, segments
from orchestrator.store.auditreading import read
from orchestrator.store.auditreading import verify as verify_chain

app = typer.Typer(
    help="Verify, follow and search the audit log.\n\nExample: cellblock audit search --agent agent-1 --outcome oom",
    no_args_is_help=True,
)
_POLL = 0.5  # seconds between two checks for new entries
_KERNEL = re.compile(r"[0-9a-fA-F]{1,32}")
_EVENT = re.compile(r"[a-z]+(\.[a-z_]*)?")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")

File = Annotated[Path | None, typer.Option("--log", help="The log file. Default: CELLBLOCK_AUDIT_LOG.")]
AsLines = Annotated[bool, typer.Option("--json", help="Print each entry as a line of JSON.")]


@app.command()
def verify(
    log: File = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            help="A head that was printed earlier, as NUMBER:HASH. It must be in the chain. With --cluster, as "
            "NODE=NUMBER:HASH; may be repeated."
        ),
    ] = None,
    cluster: Cluster = False,
    as_json: AsJson = False,
) -> None:
    """Verify that no line of the log was altered, removed, moved or truncated, and report the first fault.

    Prints the head of the chain. Keep it on another machine and pass it with --head next time: then a log that was
    rewritten as a whole is detected too. Exit status: 0 if the chain is intact, 1 if it is not.

    With --cluster: the chain of each node, which the node reads itself. Exit status: 0 if all are intact, 1 if one is
    not, or cannot be read.

    Example: cellblock audit verify --head 1841:5c1d…
    """
    if cluster:
        _refuse_file(log)
        raise typer.Exit(verify_nodes(head or [], as_json))
    if len(head or []) > 1:
        raise typer.BadParameter("one log has one head.", param_hint="--head")
    mark = _mark("".join(head or []))
    path = _path(log)
    try:
        verdict = verify_chain(path, mark)
    except OSError as error:
        raise _unreadable(path, error) from error
    if as_json:
        show_json(verdict.as_dict())
        raise typer.Exit(0 if verdict.fault is None else 1)
    for note in verdict.notes:
        console.print(f"[yellow]note:[/] {escape(note)}")
    if verdict.fault is not None:
        fault = verdict.fault
        console.print(f"[bold red]{fault.kind}:[/] {escape(str(fault.path))}, line {fault.line}: {escape(fault.said)}.")
        console.print(f"The {verdict.entries:,} entries before it are intact.")
        raise typer.Exit(1)
    console.print(f"[green]whole:[/] {verdict.entries:,} entries, {verdict.first} to {verdict.last}.")
    console.print(f"head: {verdict.head}", soft_wrap=True)


@app.command()
def tail(
    log: File = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, help="The number of entries.")] = 20,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Keep printing new entries as they are written.")
    ] = False,
    cluster: Cluster = False,
    as_json: AsLines = False,
) -> None:
    """Print the newest entries. With --cluster: those of all nodes together, without code, at most 500 of each.

    Example: cellblock audit tail -f
    """
    if cluster:
        _refuse_file(log)
        return tail_nodes(lines, follow, as_json)
    path = _path(log)
    size = _size(path)  # taken before the log is read, so that entries written meanwhile are not missed
    newest = deque(_entries(path), maxlen=max(1, lines))
    show_entries(list(newest) if lines else [], as_json)
    last = number_of(newest[-1]) if newest else 0
    while follow:
        time.sleep(_POLL)
        if (grown := _size(path)) == size:
            continue
        size = grown
        fresh = [entry for entry in _entries(path) if number_of(entry) > last]
        if fresh:
            last = number_of(fresh[-1])
            show_entries(fresh, as_json)


@app.command()
def search(
    log: File = None,
    agent: Annotated[str, typer.Option(help="Only entries of this agent.")] = "",
    kernel: Annotated[str, typer.Option(help="Only entries of the kernel whose id begins with this.")] = "",
    event: Annotated[str, typer.Option(help="Only events whose name begins with this: cell.ended, or cell.")] = "",
    outcome: Annotated[Outcome | None, typer.Option(help="Only cells, kernels or sessions that ended so.")] = None,
    code: Annotated[str, typer.Option(help="Only cells or files whose content has this SHA-256.")] = "",
    text: Annotated[str, typer.Option(help="Only entries that contain this text.")] = "",
    since: Annotated[str, typer.Option(help=f"From this time on. {ACCEPTED}")] = "",
    until: Annotated[str, typer.Option(help=f"Up to and including this day, minute or second. {ACCEPTED}")] = "",
    as_json: AsLines = False,
) -> None:
    """Print the entries that match all given options.

    Exit status: 0 if there are any, 1 if there are none, 2 if an option has a value that no entry can have.

    Example: cellblock audit search --event cell.ended --outcome oom --since 2026-01-31
    """
    _refuse_impossible(kernel, event, code)
    first = moments("--since", since)[0] if since else None
    last = moments("--until", until)[1] if until else None

    def matches(entry: dict[str, Any]) -> bool:
        when = time_of(entry) if first or last else None
        return (
            (not agent or entry.get("agent") == agent)
            and str(entry.get("kernel", "")).startswith(kernel)
            and str(entry.get("event", "")).startswith(event)
            and (not outcome or outcome in (entry.get("outcome"), entry.get("reason")))
            and (not code or code.lower() in (entry.get("code_sha256"), entry.get("sha256")))
            and (not text or text in json.dumps(entry, ensure_ascii=False))
            and (first is None or (when is not None and when >= first))
            and (last is None or (when is not None and when < last))
        )

    found = [entry for entry in _entries(_path(log)) if matches(entry)]
    show_entries(found, as_json)
    if not found:
        errors.print("no matching entries")
        raise typer.Exit(1)


def _path(log: Path | None) -> Path:
    path = log or Settings.load().audit_path
    if path is None:
        raise InvalidInputError("there is no audit log: CELLBLOCK_AUDIT_LOG is off.", remedy="Name one with --log.")
    path = path.absolute()
    try:
        found = segments(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not found:
        raise InvalidInputError(f"there is no audit log {path}.", remedy="It is created when the first kernel starts.")
    return path


def _unreadable(path: Path, error: OSError) -> InvalidInputError:
    remedy = "Run the command as root, or as the user whose process writes the log."
    denied = isinstance(error, PermissionError)
    return InvalidInputError(f"{path} cannot be read: {error.strerror}.", remedy=remedy if denied else "")


def _refuse_impossible(kernel: str, event: str, code: str) -> None:
    _refuse_unlike(_KERNEL, kernel, "--kernel", "the beginning of a kernel's id: up to 32 hexadecimal digits")
    _refuse_unlike(_EVENT, event, "--event", "the beginning of an event's name, such as cell.ended or cell.")
    _refuse_unlike(_DIGEST, code, "--code", "a SHA-256: 64 hexadecimal digits")


def _refuse_unlike(form: re.Pattern[str], value: str, option: str, accepted: str) -> None:
    if value and not form.fullmatch(value):
        raise typer.BadParameter(f"{plain(value)!r} is not {accepted}.", param_hint=option)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from read(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def _size(path: Path) -> int:
    try:
        return sum(segment.stat().st_size for segment in segments(path))
    except OSError as error:
        raise _unreadable(path, error) from error


def _mark(head: str) -> Mark | None:
    try:
        return Mark.of(head) if head else None
    except ValueError:
        raise typer.BadParameter(
            "it takes NUMBER:HASH, as `cellblock audit verify` prints it.", param_hint="--head"
        ) from None


def _refuse_file(log: Path | None) -> None:
    if log is not None:
        raise typer.BadParameter("with --cluster, each node reads its own log.", param_hint="--log")
