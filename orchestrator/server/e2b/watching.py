"""Watching folders by comparing lists: what happened between two looks. Pure, but for the looks.

A file that came and went between two looks is not told, and of several changes of a file only the last.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Any, Final

from orchestrator.errors import CommandLimitError, FileTransferError
from orchestrator.output.fileinfo import FileInfo, FileKind
from orchestrator.server.directory import Served
from orchestrator.server.e2b.e2berrors import not_there
from orchestrator.server.e2b.fileentries import entry, folder_inside

_MOST_FILES = 5000
_MOST_WATCHERS = 16
_PLACE = "e2b.watchers"
Look = dict[str, FileInfo]
Seen = dict[str, tuple[FileKind, int, float, int]]
"""Kind, size, time of change and mode of each file, by its path below the folder."""
_CREATE: Final = ("EVENT_TYPE_CREATE", "EVENT_TYPE_CHMOD", "EVENT_TYPE_WRITE")


def seen(look: Look) -> Seen:
    """Return what is kept of a list of files."""
    return {name: (info.kind, info.size, info.mtime, info.mode) for name, info in look.items()}


def changes(before: Seen, now: Seen) -> list[tuple[str, str]]:
    """Return (type, name) of each change between two lists, by name. A new file is reported as envd does it."""
    found: list[tuple[str, str]] = [("EVENT_TYPE_REMOVE", name) for name in before if name not in now]
    for name, (kind, size, mtime, mode) in now.items():
        was = before.get(name)
        if was is None or was[0] != kind:
            found += [(event, name) for event in (_CREATE if kind == "file" else _CREATE[:1])]
        elif kind == "file" and was[1:3] != (size, mtime):
            found.append(("EVENT_TYPE_WRITE", name))
        elif was[3] != mode:
            found.append(("EVENT_TYPE_CHMOD", name))
    return found


class Watcher:
    """One watched folder.

    Args:
        tells_entries: whether an event has the file's entry.
    """

    def __init__(self, served: Served, path: str, *, recursive: bool, tells_entries: bool) -> None:
        self._served = served
        self._path = folder_inside(path)
        self._recursive = recursive
        self._tells_entries = tells_entries
        self._seen: Seen = {}

    async def begin(self) -> None:
        """Look at the folder for the first time.

        Raises:
            See ``AgentKernelManager.list_files``.
        """
        info = await self._served.manager.stat_file(self._served.session, self._path, follow_links=True)
        if not info.is_dir:
            raise FileTransferError(f"path {self._path!r} is not a directory.", path=self._path, fault="not_a_folder")
        self._seen = seen(await self._look())

    async def events(self) -> list[dict[str, Any]]:
        """Return what has happened since the last look.

        Raises:
            See ``AgentKernelManager.list_files``.
        """
        look = await self._look()
        before, self._seen = self._seen, seen(look)
        return [self._event(kind, name, look) for kind, name in changes(before, self._seen)]

    def _event(self, kind: str, name: str, look: Look) -> dict[str, Any]:
        event: dict[str, Any] = {"type": kind, "name": name}
        if self._tells_entries and name in look:
            event["entry"] = entry(look[name])
        return event

    async def _look(self) -> Look:
        found = await self._served.manager.list_files(
            self._served.session, self._path, recursive=self._recursive, limit=_MOST_FILES
        )
        root = self._path.removesuffix("/.").rstrip("/") + "/"
        return {info.path.removeprefix(self._path.rstrip("/") + "/").removeprefix(root): info for info in found}


class Watchers:
    """The watchers of one sandbox that clients ask for news."""

    def __init__(self) -> None:
        self._watchers: OrderedDict[str, Watcher] = OrderedDict()

    @classmethod
    def of(cls, served: Served) -> Watchers:
        """Return the watchers of a session."""
        watchers: Watchers = served.attachments.setdefault(_PLACE, cls())
        return watchers

    async def add(self, watcher: Watcher) -> str:
        """Begin to watch. Returns the watcher's id.

        Raises:
            CommandLimitError: there are as many as may be.
            See ``Watcher.begin``.
        """
        if len(self._watchers) >= _MOST_WATCHERS:
            raise CommandLimitError(f"a sandbox may have {_MOST_WATCHERS} watchers.", limit=_MOST_WATCHERS)
        await watcher.begin()
        watcher_id = secrets.token_hex(8)
        self._watchers[watcher_id] = watcher
        return watcher_id

    def find(self, watcher_id: str) -> Watcher:
        """Return a watcher.

        Raises:
            E2bError: there is none of this id.
        """
        if watcher_id not in self._watchers:
            raise not_there(f"watcher {watcher_id[:64]!r} not found.")
        return self._watchers[watcher_id]

    def remove(self, watcher_id: str) -> None:
        """Stop watching.

        Raises:
            E2bError: there is none of this id.
        """
        self.find(watcher_id)
        del self._watchers[watcher_id]
