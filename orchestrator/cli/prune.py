"""`cellblock prune`: removes containers and folders of dead processes from this host, and keeps their sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.render import AsJson, console, errors, plain, run_async, show_json, show_table
from orchestrator.container.engine import Engine
from orchestrator.container.reaper import orphaned_folders, orphans, unjudged
from orchestrator.instance import home_of
from orchestrator.manager import AgentKernelManager
from orchestrator.sessions.owners import HostOwners, lost_sessions
from orchestrator.settings import Settings
from orchestrator.store.history import History, SessionRecord

T = TypeVar("T")


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed, and remove nothing.")] = False,
    everywhere: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Also remove kernels of dead processes of other users, state folders and network namespaces; "
            "their state is lost.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove containers and folders of dead processes, and sessions beyond the retention limits.

    State that their kernels still hold is checkpointed first: such a session sleeps, and wakes when its agent returns.
    Containers, folders and sessions of running processes are not touched. Counts only what is gone afterwards.

    Example: cellblock prune --dry-run
    """
    run_async(_look(everywhere, as_json) if dry_run else _prune(everywhere, as_json))


async def _look(everywhere: bool, as_json: bool) -> None:
    settings = Settings.load()
    containers, folders = await _of_dead_processes(settings, everywhere)
    lost = lost_sessions(await _unended(settings), HostOwners(folders=(settings.state_path, settings.data_path)))
    if as_json:
        named = {"containers": sorted(containers), "folders": sorted(map(str, folders))}
        unknown = await _unjudged(settings, everywhere)
        show_json({**named, "sessions": [record.session_id for record in lost], "unjudged": unknown})
        return
    console.print(f"containers of dead processes: {len(containers)}; folders: {len(folders)}")
    _show(lost, "lost its process")
    _show_unjudged(await _unjudged(settings, everywhere))


async def _prune(everywhere: bool, as_json: bool) -> None:
    settings = Settings.load().model_copy(update={"warm_kernels": 0})
    containers, folders = await _of_dead_processes(settings, everywhere)
    with errors.status("looking for containers and folders of dead processes"):
        async with AgentKernelManager(max_kernels=1, settings=settings) as manager:
            recovery = manager.recovery
            if everywhere:
                await manager.sweep_everywhere()
            had = await _read(settings, History.total_bytes)
            deleted = await manager.apply_retention()
            freed = had - await _read(settings, History.total_bytes)
    left, _ = await _of_dead_processes(settings, everywhere)
    gone, removed = containers - left, {folder for folder in folders if not folder.exists()}
    stay = sorted(str(folder) for folder in folders - removed)
    kept = {record.session_id: record for record in await _unended(settings) if record.session_id in recovery.sessions}
    ended = [session for session in recovery.sessions if session not in kept]
    if as_json:
        counts = {"containers": len(gone), "folders": len(removed), "old_sessions": deleted}
        left_over = {"containers": sorted(containers & left), "folders": stay}
        sessions = {record.session_id: record.state for record in kept.values()}
        outcome = {"freed_bytes": freed, "kept_sessions": sessions, "ended_sessions": ended}
        show_json({"removed": counts, "left": left_over, **outcome, "unjudged": await _unjudged(settings, everywhere)})
        return
    console.print(
        f"removed: {len(gone)} containers and {len(removed)} folders of dead processes, {deleted} old sessions"
    )
    if freed:
        console.print(f"freed: {freed / 1e6:.1f} MB of history and checkpoints beyond the retention limits")
    if stay or containers & left:
        console.print(f"left: {len(containers & left)} containers and {len(stay)} folders of dead processes")
        if not everywhere:
            console.print("`cellblock prune --all` removes those of other users and state folders too.")
    _show([record for record in kept.values() if record.state == "asleep"], "asleep")
    _show(
        [record for record in kept.values() if record.state == "live"], "kept in its kernel: it cannot be checkpointed"
    )
    if ended:
        console.print(f"ended, because neither a live kernel nor a checkpoint is left: {', '.join(ended)}")
    _show_unjudged(await _unjudged(settings, everywhere))


async def _of_dead_processes(settings: Settings, everywhere: bool) -> tuple[set[str], set[Path]]:
    """Return the ids of the containers of dead processes, and the folders of dead processes in the state folder."""
    found = await _listed(settings, lambda api: orphans(api, None if everywhere else home_of(settings)))
    return found, set(orphaned_folders(settings.state_path))


async def _unjudged(settings: Settings, everywhere: bool) -> list[str]:
    """Return the ids of the containers whose owner may live in a network namespace that is closed to this process."""
    return sorted(await _listed(settings, unjudged)) if everywhere else []


async def _listed(settings: Settings, what: Callable[[Any], list[dict[str, Any]]]) -> set[str]:
    engine = await Engine.connect(settings.engine_timeout)
    try:
        return {container["Id"] for container in await engine.retry(what, engine.client.api)}
    finally:
        engine.close()


async def _unended(settings: Settings) -> list[SessionRecord]:
    return await _read(settings, History.unended)


async def _read(settings: Settings, what: Callable[[History], T]) -> T:
    """Return what a method of the history returns."""

    def read() -> T:
        history = History.of(settings)
        try:
            return what(history)
        finally:
            history.close()

    return await asyncio.to_thread(read)


def _show(records: list[SessionRecord], state: str) -> None:
    if not records:
        return
    table = Table("session", "agent", "cells", "now")
    for record in records:
        table.add_row(record.session_id[:12], escape(plain(record.agent_id)), str(record.cells), state)
    show_table(table)


def _show_unjudged(containers: list[str]) -> None:
    if not containers:
        return
    console.print(
        f"not judged: {len(containers)} containers whose process may live in another network namespace. "
        "`cellblock prune --all` as root, outside of containers, can tell."
    )
