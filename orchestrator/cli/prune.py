"""`cellblock prune`: removes containers and folders of dead processes from this host, and keeps their sessions."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from orchestrator.cli.render import console, plain, run_async
from orchestrator.container.engine import Engine
from orchestrator.container.reaper import orphaned_folders, orphans
from orchestrator.instance import home_of
from orchestrator.manager import AgentKernelManager
from orchestrator.sessions.owners import HostOwners, lost_sessions
from orchestrator.settings import Settings
from orchestrator.store.history import History, SessionRecord


def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed, and remove nothing.")] = False,
    everywhere: Annotated[
        bool,
        typer.Option(
            "--all", help="Also remove kernels of dead processes of other users and state folders; their state is lost."
        ),
    ] = False,
) -> None:
    """Remove containers and folders of dead processes, and sessions beyond the retention limits.

    State that their kernels still hold is checkpointed first: such a session sleeps, and wakes when its agent returns.
    Containers, folders and sessions of running processes are not touched.

    Example: cellblock prune --dry-run
    """
    run_async(_look(everywhere) if dry_run else _prune(everywhere))


async def _look(everywhere: bool) -> None:
    settings = Settings.load()
    engine = await Engine.connect(settings.engine_timeout)
    try:
        containers = await engine.retry(orphans, engine.client.api, None if everywhere else home_of(settings))
    finally:
        engine.close()
    folders = orphaned_folders(settings.state_path)
    lost = lost_sessions(await _unended(settings), HostOwners(folders=(settings.state_path, settings.data_path)))
    console.print(f"containers of dead processes: {len(containers)}; folders: {len(folders)}")
    _show(lost, "lost its process")


async def _prune(everywhere: bool) -> None:
    settings = Settings.load().model_copy(update={"warm_kernels": 0})
    folders = len(orphaned_folders(settings.state_path))
    with console.status("looking for containers and folders of dead processes"):
        async with AgentKernelManager(max_kernels=1, settings=settings) as manager:
            recovery = manager.recovery
            removed = recovery.containers + (await manager.sweep_everywhere() if everywhere else 0)
            deleted = await manager.apply_retention()
    console.print(f"removed: {removed} containers and {folders} folders of dead processes, {deleted} old sessions")
    kept = {record.session_id: record for record in await _unended(settings) if record.session_id in recovery.sessions}
    _show([record for record in kept.values() if record.state == "asleep"], "asleep")
    _show(
        [record for record in kept.values() if record.state == "live"], "kept in its kernel: it cannot be checkpointed"
    )
    if ended := [session for session in recovery.sessions if session not in kept]:
        console.print(f"ended, because neither a live kernel nor a checkpoint is left: {', '.join(ended)}")


async def _unended(settings: Settings) -> list[SessionRecord]:
    def read() -> list[SessionRecord]:
        history = History.open(settings.history_url, settings.data_path)
        try:
            return history.unended()
        finally:
            history.close()

    return await asyncio.to_thread(read)


def _show(records: list[SessionRecord], state: str) -> None:
    if not records:
        return
    table = Table("session", "agent", "cells", "now")
    for record in records:
        table.add_row(record.session_id[:12], escape(plain(record.agent_id)), str(record.cells), state)
    console.print(table)
