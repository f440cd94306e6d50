"""Data folders: resolve the host's folders that sandboxes may read, and refuse unsafe ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

# The system's folders, which hold names, keys or sockets of the host. Refused with all folders above and below them.
_SYSTEM = ("/proc", "/sys", "/dev", "/run", "/boot", "/etc", "/var/run", "/var/lib/docker", "/var/lib/containerd",
           "/var/lib/cellblock", "/var/log", "/var/spool")  # fmt: skip
_OPENS = ((stat.S_ISSOCK, "socket"), (stat.S_ISFIFO, "fifo"), (stat.S_ISBLK, "device"), (stat.S_ISCHR, "device"))


def check(folder: Path) -> Path:
    """Return the folder with all symbolic links resolved.

    Raises:
        ValueError: the path is not a folder, belongs to the system, or cannot be read by the sandbox's user. Or the
            folder contains a socket, fifo or device, which a sandbox could open although the mount is read-only. Or it
            contains another file system, which the sandbox would not see.
    """
    if str(folder).startswith("~") or "/~" in str(folder):
        raise ValueError(f"{folder} contains ~, which is not expanded; give the full path")
    try:
        resolved = folder.resolve(strict=True)
        mode = resolved.stat().st_mode
        if not stat.S_ISDIR(mode):
            raise ValueError(f"{folder} is not a folder")
        _refuse_system(resolved)
        if mode & 0o005 != 0o005:
            raise ValueError(f"the sandbox's user cannot read {resolved}; run `chmod o+rx` on it")
        for mounted in _mounts_below(resolved):
            raise ValueError(
                f"{resolved} contains another file system; give its folder, {mounted}, instead or in addition"
            )
        for path, kind in _openable(resolved):
            raise ValueError(f"{resolved} contains a {kind}, which a sandbox could open: {path}")
    except (OSError, RuntimeError) as error:  # RuntimeError: links form a loop
        raise ValueError(f"{folder} cannot be used: {error}") from error
    return resolved


def _refuse_system(folder: Path) -> None:
    for name in _SYSTEM:
        system = Path(name).resolve()
        if folder in (system, *system.parents) or system in folder.parents:
            raise ValueError(f"{folder} belongs to the system or contains {name}")
    home = Path.home().resolve()
    if folder in (home, *home.parents):
        raise ValueError(f"{folder} contains the home folder {home}")


def _mounts_below(folder: Path) -> list[str]:
    mounted = (partition.mountpoint for partition in psutil.disk_partitions(all=True))
    return [path for path in mounted if folder in Path(path).parents]


def _openable(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, kind) of the sockets, fifos and devices in a folder.

    Does not follow links, because inside a sandbox they do not lead to the host's files.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    mode = entry.stat(follow_symlinks=False).st_mode
                    yield from ((entry.path, kind) for opens, kind in _OPENS if opens(mode))
