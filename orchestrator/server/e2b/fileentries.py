"""Files as E2B's clients read them, and the paths that they send. Pure."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import PurePosixPath
from posixpath import normpath
from typing import Any, Final

from orchestrator.output.fileinfo import FileInfo, FileKind
from orchestrator.server.e2b.codecontexts import HOME

_USER: Final = "user"
_TYPES: Final[dict[FileKind, str]] = {
    "file": "FILE_TYPE_FILE",
    "dir": "FILE_TYPE_DIRECTORY",
    "link": "FILE_TYPE_SYMLINK",
    "other": "FILE_TYPE_UNSPECIFIED",
}
_BITS: Final[dict[FileKind, int]] = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "link": stat.S_IFLNK, "other": 0}
_LATEST = 253402300799.0  # 9999-12-31: a file's time is what the sandbox says


def inside(path: str) -> str:
    """Return the absolute path that a client means: relative to ``/home/user``, and ``~`` is that."""
    if path == "~" or path.startswith("~/"):
        path = f".{path[1:]}"
    return str(PurePosixPath(HOME, path))


def folder_inside(path: str) -> str:
    """Return the absolute path of a folder: the home folder itself is a link, and this leads to what it is."""
    absolute = inside(path)
    return f"{absolute}/." if absolute == HOME else absolute


def entry(info: FileInfo) -> dict[str, Any]:
    """Return a file as an ``EntryInfo``. Its owner is always "user"."""
    form = {
        "name": info.name,
        "type": _TYPES[info.kind],
        "path": info.path,
        "size": str(info.size),
        "mode": info.mode,
        "permissions": stat.filemode(_BITS[info.kind] | info.mode),
        "owner": _USER,
        "group": _USER,
        "modifiedTime": time_of(info.mtime),
    }
    if info.kind != "link":
        return form
    target = normpath(PurePosixPath(PurePosixPath(info.path).parent, info.target))
    return {**form, "symlinkTarget": target, "isSymlink": True}


def written(path: str) -> dict[str, str]:
    """Return a file that was written, as the answer of an upload has it."""
    return {"name": PurePosixPath(path).name, "type": "file", "path": path}


def time_of(seconds: float) -> str:
    """Return a moment as RFC 3339 has it."""
    moment = datetime.fromtimestamp(min(max(seconds, 0.0), _LATEST), UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
