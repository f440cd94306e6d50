"""``filesystem.Filesystem`` of E2B's envd, as Connect calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import PurePosixPath
from typing import Any

from orchestrator.errors import CellblockError, FileTransferError, InvalidInputError
from orchestrator.server.directory import Served
from orchestrator.server.e2b.connectwire import envelope
from orchestrator.server.e2b.fileentries import entry, folder_inside, inside
from orchestrator.server.e2b.sandboxes import member
from orchestrator.server.e2b.watching import Watcher, Watchers

_LOOK = 0.5  # seconds between two looks at a folder whose changes are streamed
_MOST_LISTED = 10_000
Body = dict[str, Any]
Call = Callable[[Served, Body], Awaitable[Body]]


async def stat(served: Served, body: Body) -> Body:
    """Look at a file."""
    return {"entry": await _entry(served, inside(member(body, "path", str, "")))}


async def make_dir(served: Served, body: Body) -> Body:
    """Make a folder, and those above it."""
    path = inside(member(body, "path", str, ""))
    try:
        made = await served.manager.make_dir(served.session, path)
    except FileTransferError as error:
        if error.fault != "exists":
            raise
        raise InvalidInputError(f"path already exists but it is not a directory: {path}") from None
    if not made:
        raise FileTransferError(f"directory already exists: {path}", path=path, fault="exists")
    return {"entry": await _entry(served, path)}


async def move(served: Served, body: Body) -> Body:
    """Move or rename a file."""
    source, destination = (inside(member(body, name, str, "")) for name in ("source", "destination"))
    await served.manager.move(served.session, source, destination)
    return {"entry": await _entry(served, destination)}


async def remove(served: Served, body: Body) -> Body:
    """Remove a file, or a folder with all that it has. One that is not there is no error, as in E2B."""
    try:
        await served.manager.remove(served.session, inside(member(body, "path", str, "")), recursive=True)
    except FileTransferError as error:
        if error.fault != "missing":
            raise
    return {}


async def list_dir(served: Served, body: Body) -> Body:
    """List a folder, and those below it down to a depth."""
    path, depth = folder_inside(member(body, "path", str, "")), member(body, "depth", int, 1) or 1
    info = await served.manager.stat_file(served.session, path, follow_links=True)
    if not info.is_dir:
        raise FileTransferError(f"path is not a directory: {path}", path=path, fault="not_a_folder")
    found = await served.manager.list_files(served.session, path, recursive=depth > 1, limit=_MOST_LISTED)
    root = PurePosixPath(path)
    return {
        "entries": [entry(info) for info in found if len(PurePosixPath(info.path).relative_to(root).parts) <= depth]
    }


async def create_watcher(served: Served, body: Body) -> Body:
    """Watch a folder for a client that asks what has happened."""
    return {"watcherId": await Watchers.of(served).add(_watcher(served, body))}


async def get_watcher_events(served: Served, body: Body) -> Body:
    """Return what has happened in a watched folder since the last call."""
    return {"events": await Watchers.of(served).find(member(body, "watcherId", str, "")).events()}


async def remove_watcher(served: Served, body: Body) -> Body:
    """Stop watching."""
    Watchers.of(served).remove(member(body, "watcherId", str, ""))
    return {}


async def watch_dir(served: Served, body: Body) -> AsyncGenerator[bytes, None]:
    """Yield what happens in a folder, until the consumer stops or the folder is gone.

    Raises:
        See ``Watcher``.
    """
    watcher = _watcher(served, body)
    await watcher.begin()
    yield envelope({"start": {}})
    while True:
        await asyncio.sleep(_LOOK)
        try:
            events = await watcher.events()
        except FileTransferError as error:
            if error.fault == "missing":
                return
            raise
        for event in events:
            yield envelope({"filesystem": event})


CALLS: dict[str, Call] = {
    "Stat": stat,
    "MakeDir": make_dir,
    "Move": move,
    "Remove": remove,
    "ListDir": list_dir,
    "CreateWatcher": create_watcher,
    "GetWatcherEvents": get_watcher_events,
    "RemoveWatcher": remove_watcher,
}


def _watcher(served: Served, body: Body) -> Watcher:
    return Watcher(
        served,
        member(body, "path", str, ""),
        recursive=member(body, "recursive", bool, False),
        tells_entries=member(body, "includeEntry", bool, False),
    )


async def _entry(served: Served, path: str) -> dict[str, Any]:
    info = await served.manager.stat_file(served.session, path)
    form = entry(info)
    if info.kind == "link":  # a newer envd tells what a link leads to
        with contextlib.suppress(CellblockError):
            form["type"] = entry(await served.manager.stat_file(served.session, path, follow_links=True))["type"]
    return form
